"""What a person sees in the terminal: progress and messages on stderr, tables on stdout.

Importing it brings rich alone: an error is told at once.
"""

import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sea_pipeline.core.progress import Advance, ProgressOnly, Reporter

LOG = logging.getLogger("sea_pipeline")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to `cli.main` that nobody reads on: rich would end the process as if something had failed."""
        raise BrokenPipeError


# A pipe has no width: there, long values must not be folded at the 80 columns that rich assumes.
_WIDTH = None if sys.stdout is not None and sys.stdout.isatty() else 240
output = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False, width=_WIDTH)
messages = _Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


class _Rate(ProgressColumn):
    """Images per second since the start, not of the last seconds: shards and threads make those jump."""

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["already"]
        return Text(f"{done / task.elapsed:.1f}/s" if task.elapsed and done > 0 else "", style="cyan")


@contextmanager
def progress(what: str, total: int, already: int = 0) -> Iterator[Advance]:
    """A progress bar with rate and time left; silent with --quiet, and if stderr is no terminal."""
    if not messages.is_terminal or _is_quiet():
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages, transient=True) as bars:
        task = bars.add_task(what, total=total, completed=already, already=already)
        yield lambda passed: bars.advance(task, passed)


def say(message: str | Table) -> None:
    """Tells on stderr how it goes; nothing with --quiet."""
    if isinstance(message, str):
        LOG.info("%s", message)
    elif not _is_quiet():
        messages.print(message)


def _is_quiet() -> bool:
    return LOG.level > logging.INFO


def error(message: str) -> None:
    """One line on stderr."""
    LOG.error("%s", message)


def warning(message: str) -> None:
    """One line on stderr, of something that goes on all the same."""
    LOG.warning("%s", message)


class Terminal(Reporter):
    """Shows on stderr what a function does."""

    def message(self, line: str) -> None:
        """One line; nothing with --quiet."""
        say(line)

    def warning(self, line: str) -> None:
        """One line, of something that goes on all the same."""
        warning(line)

    def progress(self, what: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """A progress bar; see the function of that name."""
        return progress(what, total, done)


def bars() -> Reporter:
    """Makes a reporter that shows bars, and no lines."""
    return ProgressOnly(Terminal())


def show(record: logging.LogRecord) -> None:
    """Prints a record of the log, by its level: an error is one line, however many it has."""
    text = record.getMessage()
    if record.levelno >= logging.ERROR:
        messages.print(Text.assemble(("error:", "bold red"), f" {' '.join(text.split())}"))
    elif record.levelno >= logging.WARNING:
        messages.print(Text.assemble(("warning:", "bold yellow"), f" {text}"))
    else:
        messages.print(Text(text))
    if record.exc_info:
        messages.print(Text("".join(traceback.format_exception(*record.exc_info)).rstrip(), style="dim"))


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Shows on a terminal that something takes a while; nothing with --quiet."""
    with nullcontext() if _is_quiet() else messages.status(what):
        yield


def plain_table(*headings: str, **options: Any) -> Table:  # noqa: ANN401 - rich's
    """A table without lines, its title on the left; `options` are rich's."""
    return Table(*headings, title_justify="left", box=None, padding=(0, 2, 0, 0), **options)


def print_table(rows: Mapping[str, str]) -> None:
    """A table of names and values."""
    table = plain_table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    output.print(table)


def counted(number: int, noun: str) -> str:
    """A number and what it is of: 1 shard, 2,000 shards."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")

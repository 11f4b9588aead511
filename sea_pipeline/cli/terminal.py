"""Show progress and messages on stderr and tables on stdout.

It imports only rich, so that an error is shown at once.
"""

import datetime
import logging
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import repeat
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import measure_renderables
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.table import Column, Table
from rich.text import Text

from sea_pipeline.core.progress import Advance, Pace, ProgressOnly, Reporter, is_heard, progress_line, speaking

LOG = logging.getLogger("sea_pipeline")


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Write control characters as escapes, because a terminal would obey them. Line ends and tabs stay."""
    return text.translate(_CONTROLS)


class _Console(Console):
    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - rich's
        """Render a text without the control characters that a file's name may hold."""
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """Raise the error for `cli.main`, because rich would end the process as if something had failed."""
        raise BrokenPipeError


# A pipe has no width, and long values must not be folded at the 80 columns that rich assumes.
_WIDTH = None if sys.stdout is not None and sys.stdout.isatty() else 240
output = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False, width=_WIDTH)
messages = _Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


class _Rate(ProgressColumn):
    """Images per second since the start.

    The rate of the last seconds would jump with shards and threads.
    """

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["already"]
        return Text(f"{done / task.elapsed:.1f}/s" if task.elapsed and done > 0 else "", style="cyan")


class _Times(ProgressColumn):
    """The time that has passed and the time that is left, named so that nobody takes one for the other."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        pace: Pace = task.fields["pace"]
        left = None if task.finished else pace.seconds_left()
        shown = "" if left is None else f", {_clock(left)} left"
        return Text(f"after {_clock(task.elapsed or 0)}{shown}", style="cyan")


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


EVERY = 60.0
"""Seconds between two lines of progress if no bar can be shown."""


@contextmanager
def progress(what: str, total: int, already: int = 0) -> Iterator[Advance]:
    """Show a progress bar with rate and time left, or a line about once a minute if stderr is no terminal.

    It is silent with --quiet.
    """
    pace = Pace(total, already)
    if not is_heard():
        yield pace.advance
        return
    if not messages.is_terminal:
        # From a thread, because one item may take longer than a minute.
        with speaking(lambda: say(progress_line(what, pace.done, pace.total, pace.seconds_left())), repeat(EVERY)):
            yield pace.advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), _Times())
    with Progress(*columns, console=messages, transient=True) as bars:
        task = bars.add_task(what, total=total, completed=already, already=already, pace=pace)

        def advance(passed: int) -> None:
            pace.advance(passed)
            bars.advance(task, passed)

        yield advance


def say(message: str | Table) -> None:
    """Show a message on stderr, unless --quiet is given."""
    if isinstance(message, str):
        LOG.info("%s", message)
    elif is_heard():
        messages.print(message)


def error(message: str) -> None:
    """Log an error, which is shown as one line on stderr."""
    LOG.error("%s", message)


def warning(message: str) -> None:
    """Log a warning, after which the command continues."""
    LOG.warning("%s", message)


class Terminal(Reporter):
    """Shows on stderr what a function does."""

    def message(self, line: str) -> None:
        """Show a line, unless --quiet is given."""
        say(line)

    def warning(self, line: str) -> None:
        """Show a warning, after which the command continues."""
        warning(line)

    def progress(self, what: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """Show a progress bar, see the function of that name."""
        return progress(what, total, done)


def bars() -> Reporter:
    """Make a reporter that shows progress bars, and of lines only those before long work."""
    return ProgressOnly(Terminal())


def show(record: logging.LogRecord) -> None:
    """Print a record of the log by its level.

    An error is printed as one line, however many its message has.
    """
    text = printable(record.getMessage())
    if record.levelno >= logging.ERROR:
        messages.print(Text.assemble(("error:", "bold red"), f" {' '.join(text.split())}"))
    elif record.levelno >= logging.WARNING:
        messages.print(Text.assemble(("warning:", "bold yellow"), f" {text}"))
    else:
        messages.print(Text(text))
    if record.exc_info:
        trace = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        messages.print(Text(printable(trace), style="dim"))


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show on a terminal that something takes a while, unless --quiet is given."""
    with messages.status(what) if is_heard() else nullcontext():
        yield


_GAP = 2
"""The spaces after each column of a table."""
_LEAST = 6
"""The characters that a column of text which is folded has at least."""


class _WholeTable(Table):
    """A table that cuts no number and no name: in a narrower terminal its lines go on in the next ones."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table at the width of the terminal, or at the least that its columns need."""
        natural = options.update(width=sys.maxsize)
        needed = 0
        for column in self.columns:
            if column.min_width is None:
                folds = column.overflow == "fold"
                cells = column.cells if folds else (column.header, *column.cells)
                words, lines = measure_renderables(console, natural, [*cells])
                is_text = folds and column.justify != "right"
                column.min_width = lines if column.no_wrap else min(words, _LEAST) if is_text else words
            needed += column.min_width + _GAP
        return super().__rich_console__(console, options.update(width=max(options.max_width, needed)))


def plain_table(*headings: str | Column, numbers: Iterable[str] = (), **options: Any) -> Table:  # noqa: ANN401 - rich's
    """Make a table without lines, with its title on the left.

    `numbers` are the headings of columns that are aligned on the right, after the others. `options` are rich's.
    """
    columns = (*headings, *(Column(heading, justify="right") for heading in numbers))
    return _WholeTable(*columns, title_justify="left", box=None, padding=(0, _GAP, 0, 0), **options)


def print_table(rows: Mapping[str, str]) -> None:
    """Print a table of names and values."""
    table = plain_table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    output.print(table)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as 1 shard or 2,000 shards."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")

"""What commands say on stderr, by Python's `logging`: the logger `sea_pipeline` and those below it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

LOG = logging.getLogger("sea_pipeline")

Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr but warnings and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Say more on stderr; of an error, where it came from.")]


def set_level(*, quiet: bool, verbose: bool) -> None:
    """Sets what is heard of the program; of --quiet and --verbose both, --verbose counts."""
    if quiet or verbose:
        LOG.setLevel(logging.DEBUG if verbose else logging.WARNING)


@contextmanager
def heard() -> Iterator[None]:
    """Shows the log on stderr, from INFO on if nothing else is asked for."""
    screen, level, passed_on = _Screen(), LOG.level, LOG.propagate
    LOG.addHandler(screen)
    LOG.propagate = False  # a library that sets up logging for all would say everything twice
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.removeHandler(screen)
        LOG.propagate = passed_on
        LOG.setLevel(level)


class _Screen(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from sea_pipeline.cli import terminal  # here: a shell that completes a line waits for what is imported above

        terminal.show(record)

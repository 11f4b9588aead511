"""Show on stderr what commands log to the logger `sea_pipeline` and those below it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

LOG = logging.getLogger("sea_pipeline")

Quiet = Annotated[bool, typer.Option("--quiet", help="Print only warnings and errors to stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print more to stderr, and the traceback of an error.")]


def set_level(*, quiet: bool, verbose: bool) -> None:
    """Set the level of the log from --quiet and --verbose, of which --verbose wins."""
    if quiet or verbose:
        LOG.setLevel(logging.DEBUG if verbose else logging.WARNING)


@contextmanager
def heard() -> Iterator[None]:
    """Show the log on stderr, from INFO on unless another level is set."""
    screen, level, passed_on = _Screen(), LOG.level, LOG.propagate
    LOG.addHandler(screen)
    LOG.propagate = False  # a library that configures the root logger would print everything twice
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.removeHandler(screen)
        LOG.propagate = passed_on
        LOG.setLevel(level)


class _Screen(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from sea_pipeline.cli import terminal  # here because a shell that completes a line waits for imports above

        terminal.show(record)

"""How functions that take long tell what they do, and how much memory a process has had."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Advance = Callable[[int], None]
"""Called with how many items have passed since its last call; less than 0 if some are done again."""


class Reporter:
    """Hears what a function does; this one shows nothing, and a subclass shows what it overrides."""

    def message(self, line: str) -> None:
        """Hears one line about how it goes."""

    def warning(self, line: str) -> None:
        """Hears one line about something that goes on all the same."""

    def progress(self, what: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """Opens a bar for `total` items, of which `done` were there before; gives what is called as they pass."""
        return nullcontext(lambda _: None)

    @property
    def shows_warnings(self) -> bool:
        """Whether anybody sees a warning; what is computed for a warning alone is left out if not."""
        return type(self).warning is not Reporter.warning


SILENT = Reporter()


class ProgressOnly(Reporter):
    """Shows the bars of another reporter, without its lines."""

    def __init__(self, reporter: Reporter) -> None:
        self.progress = reporter.progress  # type: ignore[method-assign]


def process_peak_bytes() -> int:
    """The most resident memory that this process has had."""
    import resource  # here: Windows lacks it, and reads labels all the same

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""How functions that take long tell of what passes, and how much memory a process has had."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

ProgressBar = Callable[[str, int, int], AbstractContextManager[Callable[[int], None]]]
"""(what, total, done already) to a context that gives a function to be told of what passes."""


def no_bar(what: str, total: int, done: int) -> AbstractContextManager[Callable[[int], None]]:
    """Shows nothing."""
    return nullcontext(lambda _: None)


def process_peak_bytes() -> int:
    """The most resident memory that this process has had."""
    import resource  # here: Windows lacks it, and reads labels all the same

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

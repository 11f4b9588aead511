"""How functions that take long tell of what passes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

ProgressBar = Callable[[str, int, int], AbstractContextManager[Callable[[int], None]]]
"""(what, total, done already) to a context that gives a function to be told of what passes."""


def no_bar(what: str, total: int, done: int) -> AbstractContextManager[Callable[[int], None]]:
    """Shows nothing."""
    return nullcontext(lambda _: None)

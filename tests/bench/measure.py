"""Ratios of two things measured in the same run, in turn, so that a drifting machine changes both."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Figure(NamedTuple):
    """One measured number."""

    name: str
    value: float
    unit: str
    baseline: str
    """What the ratio is over, and the absolute numbers behind it."""


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    gc.collect()
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def in_turn(*actions: Callable[[], object], repeats: int = 5) -> list[float]:
    """The median seconds of each action, after one call of each that does not count."""
    for action in actions:
        action()
    rounds = [[seconds(action) for action in actions] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]

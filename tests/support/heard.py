"""Reporters that keep what they hear, or print it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from sea_pipeline.core.progress import Reporter
from trainer.training.reporter import Part, TrainReporter


class Heard(TrainReporter):
    """Keeps lines, warnings among them, in their order; and tables of the data and of what trains, and metrics."""

    def __init__(self, lines: list[str] | None = None) -> None:
        self.lines = [] if lines is None else lines
        self.warnings: list[str] = []
        self.rows: list[dict[str, int]] = []
        self.parts: dict[str, Part] = {}
        self.measured: dict[str, dict[str, float]] = {}

    def message(self, line: str) -> None:
        self.lines.append(line)

    def warning(self, line: str) -> None:
        self.lines.append(line)
        self.warnings.append(line)

    def data(self, rows: Mapping[str, int]) -> None:
        self.rows.append(dict(rows))

    def trainable(self, parts: Mapping[str, Any]) -> None:
        self.parts.update(parts)

    def metrics(self, title: str, values: Mapping[str, float]) -> None:
        self.measured.setdefault(title, dict(values))


def waited_for(said: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until another thread has said something."""
    end = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < end, "nothing was said"
        time.sleep(0.001)


class Printing(Reporter):
    """Prints lines, behind what they are of."""

    def __init__(self, of: str = "") -> None:
        self._of = of

    def message(self, line: str) -> None:
        print(self._of + line, flush=True)

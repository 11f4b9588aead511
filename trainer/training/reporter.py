"""Who hears what a training run does: of lines and bars, and of what becomes a table."""

from collections.abc import Mapping
from typing import Any

from sea_pipeline.core.progress import Reporter
from sea_pipeline.core.renamed import Callbacks

Part = tuple[int, int, float | None]
"""Of a model: parameters, those that train, learning rate."""


class TrainReporter(Reporter):
    """Hears of tables, too; this one shows nothing."""

    def data(self, rows: Mapping[str, int]) -> None:
        """Hears of the data: rows by what they are, and those left out by kind."""

    def trainable(self, parts: Mapping[str, Part]) -> None:
        """Hears what trains, by part of the model."""

    def metrics(self, title: str, values: Mapping[str, float]) -> None:
        """Hears of metrics by name under a title."""


class Told(Callbacks, TrainReporter):
    """Calls the callbacks that were given to `train` before there were reporters; goes with version 0.2."""

    def __init__(self, **callbacks: Any) -> None:  # noqa: ANN401 - each of its own kind
        super().__init__(**callbacks)
        for name in ("data", "trainable", "metrics"):
            setattr(self, name, callbacks.get(name, getattr(self, name)))


def of_told(told: Reporter) -> Reporter:
    """Makes a reporter of the old argument `told`, which is one."""
    return told

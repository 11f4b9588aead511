"""Report what a training run does, as lines, bars and tables."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sea_pipeline.core.progress import Reporter
from sea_pipeline.core.renamed import Callbacks, renamed

Part = tuple[int, int, float | None]
"""A part of a model as its number of parameters, the number of those that train, and their learning rate."""


if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, __name__, {"Told": "TrainCallbacks"})


class TrainReporter(Reporter):
    """A reporter that also receives tables.

    This one ignores them.
    """

    def data(self, rows: Mapping[str, int]) -> None:
        """Show the number of rows of each sort, and of those left out by kind."""

    def trainable(self, parts: Mapping[str, Part]) -> None:
        """Show what trains, by part of the model."""

    def metrics(self, title: str, values: Mapping[str, float]) -> None:
        """Show metrics by name under a title."""


class TrainCallbacks(Callbacks, TrainReporter):
    """Call the callbacks that were given to `train` before there were reporters.

    It goes with version 0.2.
    """

    def __init__(self, **callbacks: Any) -> None:  # noqa: ANN401 - each of its own kind
        super().__init__(**callbacks)
        for name in ("data", "trainable", "metrics"):
            setattr(self, name, callbacks.get(name, getattr(self, name)))


def reporter_of_told(told: Reporter) -> Reporter:
    """Return the old argument `told`, which is a reporter already."""
    return told

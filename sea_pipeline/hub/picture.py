"""Draw the picture of a dataset's card, with figures over all images.

It shows no image, because images have terms of their own.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sea_pipeline.core.extras import require
from sea_pipeline.labels.statistics import Statistics
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.report.figures import save_figure, statistics_figure
from sea_pipeline.storage.parquet import open_parquet

PICTURE = "figures.png"


def draw_picture(ledger: Ledger, stats: Statistics | None, path: Path) -> None:
    """Draw SEA's Figure 6 of labels, or the mean attention over the grid of targets, as a PNG file.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    grid = tuple(ledger.manifest().fields["grid"])
    save_figure(statistics_figure(stats) if stats is not None else _attention_figure(_attention(ledger), grid), path)


def _attention(ledger: Ledger) -> npt.NDArray[np.float64]:
    """Return the mean of a over all images (BASIC Eq. 5), (m,)."""
    total, rows = np.zeros(1), 0
    for shard in ledger.manifest().shards:
        with ledger.reading(shard):
            column = open_parquet(ledger.root / shard.path).read(["attention"])["attention"].combine_chunks()
        if len(column):
            total = total + column.flatten().to_numpy().reshape(len(column), -1).sum(0, dtype=np.float64)
            rows += len(column)
    mean: npt.NDArray[np.float64] = total / max(1, rows)
    return mean


def _attention_figure(mean: npt.NDArray[np.float64], grid: tuple[int, ...]) -> Any:  # noqa: ANN401 - a Figure
    figure = require("matplotlib.figure", "report").Figure(figsize=(3.6, 3), layout="constrained")
    axes = figure.subplots()
    values = mean.reshape(grid) if mean.size == grid[0] * grid[1] else np.zeros(grid)
    shown = axes.imshow(values * mean.size, cmap="viridis")
    figure.colorbar(shown, label="1: as much as every patch")
    axes.set(title="mean attention of the patches", xlabel="column", ylabel="row")
    return figure

"""What was found of each row and seed: as lines of JSON, as a table, as a chart with error bars."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sea_pipeline.core.extras import require
from tests.bench.compare.rows import Row

COLUMNS = {
    "right_photo_gain": 3,
    "right_photo_gain_content": 3,
    "lm_loss": 3,
    "lm_loss_other": 3,
    "lm_loss_content": 3,
    "yes_no_accuracy": 3,
    "yes_no_accuracy_other": 3,
    "vqa_accuracy": 3,
    "vqa_accuracy_other": 3,
    "label_hit@1": 3,
    "label_hit@10": 3,
    "tacs": 3,
    "gap": 2,
    "meaningful": 3,
    "meaningful_chance": 3,
    "distinct_tokens": 0,
}
"""Metrics, and the digits shown; those that no row has are left out."""
CHARTED = {
    "right_photo_gain": "right photo's gain, nats a token",
    "right_photo_gain_content": "the same, content words",
    "lm_loss": "held-out L_lm, nats a token",
    "yes_no_accuracy": "yes/no questions answered rightly",
    "vqa_accuracy": "VQA accuracy",
    "label_hit@10": "visual tokens at a label of their patch",
}
"""Metrics with a panel of their own, and what it is called."""
_BAR, _DOT = "#56b4e9", "#14171a"


class MetricMean(NamedTuple):
    """A metric of a row over its seeds."""

    values: list[float]
    """By seed."""
    photos: float | None
    """The standard error over photos, its mean over seeds."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.mean(self.values)

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


Metrics = Mapping[int, Mapping[str, float]]
"""Of a row: by seed, metrics by name."""


def found(metrics: Metrics, name: str) -> MetricMean | None:
    """Gathers a metric over seeds; None if no seed has it."""
    values = [one[name] for one in metrics.values() if name in one]
    errors = [one[f"{name}_se"] for one in metrics.values() if f"{name}_se" in one]
    return MetricMean(values, statistics.mean(errors) if errors else None) if values else None


def table(rows: Sequence[Row], metrics: Mapping[str, Metrics]) -> str:
    """Writes Markdown: a line for every row, also for those of which nothing is there yet."""
    columns = [name for name in COLUMNS if any(found(each, name) for each in metrics.values())]
    lines = [f"| trained | seeds | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 2)}"]
    for row in rows:
        mine = metrics.get(row.name, {})
        cells = [_cell(found(mine, name), COLUMNS[name]) for name in columns]
        seeds = " ".join(map(str, sorted(mine))) or "missing"
        lines.append(f"| {' | '.join([row.title, seeds, *cells])} |")
    note = "Mean over seeds ± standard deviation over seeds (standard error over photos)."
    return "\n".join([*lines, "", note, ""])


def _cell(one: MetricMean | None, digits: int) -> str:
    if one is None:
        return ""
    spread = "" if one.spread is None else f" ± {one.spread:.{digits}f}"
    photos = "" if one.photos is None else f" ({one.photos:.{digits}f})"
    return f"{one.mean:.{digits}f}{spread}{photos}"


def chart(rows: Sequence[Row], metrics: Mapping[str, Metrics], files: Iterable[Path]) -> None:
    """Draws a panel for each metric: bars are means over seeds, their errors those over photos, dots are seeds."""
    shown = [name for name in CHARTED if any(found(each, name) for each in metrics.values())] or list(CHARTED)[:1]
    figure = require("matplotlib.figure", "report").Figure(
        figsize=(2.2 + 2.6 * len(shown), 1.0 + 0.36 * len(rows)), layout="constrained"
    )
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    titles = [row.title if metrics.get(row.name) else f"{row.title} (missing)" for row in rows]
    for axes, name in zip(panels, shown, strict=True):
        for place, row in enumerate(rows):
            if (one := found(metrics.get(row.name, {}), name)) is not None:
                axes.barh(place, one.mean, 0.7, color=_BAR, xerr=one.photos, capsize=3)
                axes.plot(one.values, [place] * len(one.values), ".", color=_DOT, markersize=4)
        axes.set_title(CHARTED[name], fontsize=8)
        axes.tick_params(labelsize=8)
        if name == "lm_loss":
            _from_near_the_least(axes, rows, metrics)
    panels[0].set_yticks(range(len(rows)), titles)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel("bars: means over seeds; errors: standard error over photos; dots: seeds", fontsize=7)
    for file in files:
        figure.savefig(file, dpi=160)


def _from_near_the_least(axes: Any, rows: Sequence[Row], metrics: Mapping[str, Metrics]) -> None:
    """Losses differ by hundredths: the axis begins at nine tenths of the least one."""
    every = [value for row in rows if (one := found(metrics.get(row.name, {}), "lm_loss")) for value in one.values]
    axes.set_xlim(0.9 * min(every), None)


def write(rows: Sequence[Row], metrics: Mapping[str, Metrics], out: Path) -> str:
    """Writes `results.jsonl`, `table.md`, `chart.svg` and `chart.png`; gives the table."""
    lines = [
        json.dumps({"row": row.name, "seed": seed, **values})
        for row in rows
        for seed, values in sorted(metrics.get(row.name, {}).items())
    ]
    (out / "results.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    text = table(rows, metrics)
    (out / "table.md").write_text(text, "utf-8")
    chart(rows, metrics, [out / "chart.svg", out / "chart.png"])
    return text

"""One metric of compared rows as bars with error bars, from the `results.jsonl` of `tests.bench.compare`."""

import json
import statistics
from collections import defaultdict
from pathlib import Path

from tests.bench.compare.__main__ import CAPTIONS
from tests.bench.compare.rows import read_rows
from tests.bench.compare.tables import CHARTED
from tests.pictures.drawing import PALETTES, Drawing, Palette


def draw(results: Path, metric: str, out: Path) -> list[Path]:
    """Draws `bars-light.svg` and `bars-dark.svg`: means over seeds, errors over seeds, a dot for each seed."""
    values: dict[str, list[float]] = defaultdict(list)
    for line in results.read_text("utf-8").splitlines():
        found = json.loads(line)
        if metric in found:
            values[found["row"]].append(found[metric])
    titles = {row.name: row.title for row in read_rows(CAPTIONS)}
    return [_bars(values, titles, metric, palette).save(out / f"bars-{name}.svg") for name, palette in PALETTES.items()]


def _bars(values: dict[str, list[float]], titles: dict[str, str], metric: str, palette: Palette) -> Drawing:
    drawing = Drawing(960, 92 + 34 * len(values), CHARTED.get(metric, metric), palette)
    highest = max(max(each) for each in values.values())
    scale = 560 / (highest * 1.1)
    drawing.text(16, 28, CHARTED.get(metric, metric), bold=True, size=15)
    for place, (row, each) in enumerate(values.items()):
        y, mean = 48 + 34 * place, statistics.mean(each)
        drawing.text(290, y + 16, titles.get(row, row), anchor="end")
        drawing.box(300, y, max(0, mean) * scale, 22, line="none", fill="accent", round_=2)
        if len(each) > 1:
            error = statistics.stdev(each)
            drawing.line([(300 + (mean - error) * scale, y + 11), (300 + (mean + error) * scale, y + 11)])
        for value in each:
            drawing.dot(300 + value * scale, y + 11, 3, "warm")
        drawing.text(310 + (highest * 1.05) * scale, y + 16, f"{mean:.3f}", size=12, color="soft")
    note = "Bars: means over seeds. Lines: standard deviation over seeds. Dots: seeds."
    drawing.text(16, 72 + 34 * len(values), note, size=12, color="soft")
    return drawing

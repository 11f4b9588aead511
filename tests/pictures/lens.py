"""The gains of both lenses by layer, as lines with error bars, from `evaluate --lens contextual --json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.compare.__main__ import CAPTIONS
from tests.bench.compare.rows import read_rows
from tests.pictures.drawing import PALETTES, Drawing, Palette

PANELS = {"contextual_gain": "By the LLM's states", "word_gain": "By input embeddings"}
_COLORS = ("ink", "accent", "warm", "green")
_WIDTH, _HEIGHT, _TOP = 400, 240, 64


def draw(files: Mapping[str, Path], out: Path) -> list[Path]:
    """Draws `lens-light.svg` and `lens-dark.svg`: a panel for each lens, a line for each row of the comparison."""
    rows = {row: json.loads(file.read_text("utf-8"))["lens"]["layers"] for row, file in files.items()}
    return [_panels(rows, palette).save(out / f"lens-{name}.svg") for name, palette in PALETTES.items()]


def _panels(rows: Mapping[str, list[dict[str, Any]]], palette: Palette) -> Drawing:
    title = "Share of visual tokens at a word of the own captions, less that at a word of another photo's"
    drawing = Drawing(960, _TOP + _HEIGHT + 50 + 20 * len(rows), title, palette)
    drawing.text(16, 28, title, bold=True, size=15)
    titles = {row.name: row.title for row in read_rows(CAPTIONS)}
    ends = [layer[name] + way * layer[f"{name}_se"] for each in rows.values() for layer in each for name in PANELS
            for way in (-1, 1)]  # fmt: skip
    low, high = min(0.0, *ends), max(ends)
    last = max(layer["layer"] for each in rows.values() for layer in each)
    for number, (name, heading) in enumerate(PANELS.items()):
        left = 60 + 470 * number

        def at(layer: float, value: float, left: int = left) -> tuple[float, float]:
            return left + _WIDTH * layer / last, _TOP + _HEIGHT * (high - value) / (high - low)

        drawing.text(left, _TOP - 12, heading)
        drawing.line([at(0, 0), at(last, 0)], color="line", thick=1)
        drawing.text(left - 8, at(0, 0)[1] + 4, "0", size=12, color="soft", anchor="end")
        drawing.text(left - 8, _TOP + 4, f"{high:.2f}", size=12, color="soft", anchor="end")
        for layer in sorted({*range(0, last, 5), last}):
            drawing.text(at(layer, 0)[0], _TOP + _HEIGHT + 18, str(layer), size=12, color="soft", anchor="middle")
        for color, each in zip(_COLORS, rows.values(), strict=False):
            for one in each:
                ends_ = [at(one["layer"], one[name] + way * one[f"{name}_se"]) for way in (-1, 1)]
                drawing.line(ends_, color=color, thick=0.8)
            drawing.line([at(one["layer"], one[name]) for one in each], color=color)
    below = _TOP + _HEIGHT + 40
    drawing.text(60, below, "Layer of the LLM; 0 is its input. Short lines: standard errors over photos.", size=12,
                 color="soft")  # fmt: skip
    for place, (color, row) in enumerate(zip(_COLORS, rows, strict=False)):
        y = below + 20 * (place + 1)
        drawing.line([(60, y - 4), (84, y - 4)], color=color)
        drawing.text(92, y, titles.get(row, row), size=12)
    return drawing

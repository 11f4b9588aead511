"""Draw figures for papers, which are a photo with a word on each patch and SEA's Figure 6.

They are PNG, or PDF and SVG whose text stays text. They use matplotlib's objects without pyplot, so nothing here opens
a window or keeps a figure.
"""

import hashlib
import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import require
from sea_pipeline.inputs.crops import CropBox
from sea_pipeline.inputs.pixels import BadImageError
from sea_pipeline.inputs.sources import open_source
from sea_pipeline.labels.statistics import BIN_WIDTH, Statistics, image_words
from sea_pipeline.labels.store import Labels, LabelStore
from sea_pipeline.report.labels import labelled_photo
from sea_pipeline.report.packing import covered
from sea_pipeline.storage.results import ResultKind, publish_result

SUFFIXES = (".png", ".pdf", ".svg")
FIGURE = ResultKind("--save", b"Matplotlib")
"""Each format names the library."""

Kind = Literal["hit", "miss", "none"]
_CELL = 0.42
"""The side of a patch in inches, at which words of six letters are legible in a column of a paper."""
_LETTER = 0.075
"""The width of a title's letter in inches, at most on average."""
_HIT, _FILL, _MISS, _INK = "#0a6b5e", "#d3efe8", "#973d00", "#14171a"
_MOST_POINTS, _LEAST_POINTS = 7.5, 3.5
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a7bc8", "#7a6200")
_OPTIONS = {"pdf.fonttype": 42, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8}


class Panel(NamedTuple):
    """A photo's patches with a text on each."""

    title: str
    texts: Sequence[str]
    """A text for each patch, row-major, empty if it has none."""
    kinds: Sequence[Kind] | None = None
    """The kind of each patch: hits are boxed and bold, misses are not. None: patches with the same text share a
    colour."""


def check_figure(path: Path) -> None:
    """Check, before any work, that a figure can be written to this path.

    Raises:
        UserError: the suffix names no known format, or matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        found = f"{path.suffix!r}" if path.suffix else "no suffix"
        raise UserError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}; found {found}")
    require("matplotlib", "report")


def patches_figure(
    photo: Image.Image, box: CropBox, grid: tuple[int, int], panels: Sequence[Panel], columns: int
) -> Any:  # noqa: ANN401 - matplotlib's Figure
    """Draw the part of a photo that a grid covers, once for each panel, with the panel's words on it.

    It is like SEA's Fig. 1 and BASIC's Fig. 2.

    Args:
        photo: the upright photo.
        box: x0, y0, x1, y1 of the part, as shares of the photo.
        grid: (rows, columns).
        panels: at least one, each with rows * columns texts.
        columns: the number of panels in a row.
    """
    rows = -(-len(panels) // columns)
    size = (columns * (grid[1] * _CELL + 0.15), rows * (grid[0] * _CELL + 0.35))
    figure = require("matplotlib.figure", "report").Figure(figsize=size, layout="constrained")
    part = covered(photo.convert("RGB"), box)
    part.thumbnail((900, 900))
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(
            np.asarray(part), extent=(0, grid[1], grid[0], 0), alpha=0.45, interpolation="bilinear", aspect="auto"
        )
        title = textwrap.fill(_plain(panel.title), max(20, int(grid[1] * _CELL / _LETTER)))
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_axis_off()
        _write(axes, grid, panel)
    return figure


def labels_figure(photo: Image.Image, labels: Labels, words: Sequence[str]) -> Any:  # noqa: ANN401 - matplotlib's Figure
    """Draw a photo with the best word of each patch on it, under the photo's ten words."""
    best = [words[word] if word >= 0 else "" for word in labels.word_ids[:, 0]]
    title = " · ".join(words[word] for word, _ in image_words(labels))
    return patches_figure(photo, labels.crop_box, labels.grid, [Panel(title, best)], 1)


def statistics_figure(stats: Statistics) -> Any:  # noqa: ANN401 - matplotlib's Figure
    """Draw SEA's Figure 6, with (a) the scores of all labels and (b) the mean similarity of each word of the list."""
    with require("matplotlib", "report").rc_context(_OPTIONS):
        figure = require("matplotlib.figure", "report").Figure(figsize=(7, 2.4), layout="constrained")
        scores, means = figure.subplots(1, 2)
        starts = np.arange(len(stats.score_bins)) * BIN_WIDTH
        scores.bar(starts, stats.score_bins, BIN_WIDTH * 0.92, align="edge", color=_COLOURS[0])
        scores.set(title="(a) labels by their score", xlabel="similarity", ylabel="labels")
        means.hist(stats.mean_similarity, bins=60, color=_COLOURS[0])
        means.axvline(0, color=_INK, linewidth=0.8, linestyle="--")
        below = f"(b) words by mean similarity: {stats.share_below_zero:.1%} below 0"
        means.set(title=below, xlabel="similarity", ylabel="words")
        for axes in (scores, means):
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_figure(figure: Any, path: Path) -> str:  # noqa: ANN401 - matplotlib's Figure
    """Write a figure in the format that its file name says, completely or not at all.

    The same figure gives the same PDF. Returns the characters that the font lacks and the figure shows as boxes.

    Raises:
        UserError: see `check_figure`; or the file cannot be written.
    """
    check_figure(path)
    kind = path.suffix.lower().removeprefix(".")
    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    options = require("matplotlib", "report").rc_context(_OPTIONS)
    whole = io.BytesIO()  # because matplotlib fails in its own way if a disk is full
    with options, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        figure.savefig(whole, format=kind, dpi=200, metadata=dated.get(kind))
    with publish_result(path) as scratch:
        scratch.write_bytes(whole.getvalue())
    codes = (re.match(r"Glyph (\d+) ", str(warning.message)) for warning in heard)
    return "".join(sorted({chr(int(code[1])) for code in codes if code}))


def photo_of(store: LabelStore, image_id: str) -> Image.Image:
    """Read the upright photo of a row.

    Raises:
        UserError: the photo cannot be read from its place any more, or is another file there.
    """
    root, uri = store.image_root, store.uri(image_id)
    try:
        return labelled_photo(open_source(str(root)), uri, store.image_sha256(image_id))
    except BadImageError as error:
        raise UserError(f"{root}/{uri}: cannot be drawn: {error.message}") from error


def _write(axes: Any, grid: tuple[int, int], panel: Panel) -> None:  # noqa: ANN401 - matplotlib's Axes
    rectangle = require("matplotlib.patches", "report").Rectangle
    for patch, text in enumerate(panel.texts):
        row, column = divmod(patch, grid[1])
        kind = panel.kinds[patch] if panel.kinds is not None else None
        if text and kind in (None, "hit"):
            hit = {"facecolor": (_FILL, 0.85), "edgecolor": _HIT, "linewidth": 0.9}
            tint = {"facecolor": (_colour(text), 0.22), "edgecolor": "white", "linewidth": 0.2}
            axes.add_patch(rectangle((column + 0.03, row + 0.03), 0.94, 0.94, **(hit if kind == "hit" else tint)))
        ink = {"hit": _HIT, "miss": _MISS}.get(kind or "", _INK)
        points = max(_LEAST_POINTS, min(_MOST_POINTS, 72 * _CELL * 0.95 / (0.68 * max(1, len(text)))))
        weight = "bold" if kind == "hit" else "normal"
        axes.text(
            column + 0.5, row + 0.5, _plain(text), color=ink, fontsize=points, weight=weight, ha="center", va="center",
            clip_on=True,
        )  # fmt: skip


def _plain(text: str) -> str:
    """Put text on one line and escape what matplotlib would read as mathematics."""
    return " ".join(text.split()).replace("$", r"\$")


def _colour(text: str) -> str:
    """Choose a colour for a word, the same one in every figure."""
    return _COLOURS[hashlib.sha256(text.encode()).digest()[0] % len(_COLOURS)]

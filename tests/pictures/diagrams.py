"""What SEA pulls where, what a recipe's stages train, and which command is for what."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sea_pipeline import LabelStore, open_labels
from sea_pipeline.inputs.sources import list_samples, open_source
from tests.pictures.drawing import PALETTES, Drawing, Palette
from tests.pictures.report_pictures import PHOTO
from trainer import sampling

_SIDE, _CELL = 8, 34
"""Patches along a side of the part of the photo that is shown, and the pixels of one."""
_PLACES = ((0.20, 0.25), (0.66, 0.16), (0.84, 0.46), (0.30, 0.62), (0.62, 0.74), (0.14, 0.88))
"""Where words lie in the square that stands for the LLM's space."""


class Excerpt(NamedTuple):
    """A square part of the photo's patches."""

    picture: str
    """As a data URI."""
    word_ids: np.ndarray
    """(patches, n)"""
    scores: np.ndarray


def draw(labels: Path, out: Path) -> list[Path]:
    """Draws every diagram, light and dark."""
    store = open_labels(labels)
    excerpt = _excerpt(store)
    files = []
    for name, palette in PALETTES.items():
        files.append(_sea(store, excerpt, palette).save(out / f"sea-{name}.svg"))
        files.append(_recipe(palette).save(out / f"recipe-{name}.svg"))
        files.append(_commands(palette).save(out / f"commands-{name}.svg"))
    return files


def _excerpt(store: LabelStore) -> Excerpt:
    listing = list_samples(None)
    (uri,) = [sample.uri for sample in listing.samples if sample.image_id == PHOTO]
    picture = Image.open(io.BytesIO(open_source(listing.root).read(uri)))
    one = store[PHOTO]
    rows, columns = one.grid
    top, left = (rows - _SIDE) // 2 - 1, (columns - _SIDE) // 2
    chosen = (np.arange(rows * columns).reshape(rows, columns))[top : top + _SIDE, left : left + _SIDE].ravel()
    x0, y0, x1, y1 = one.crop_box
    width, height = (x1 - x0) * picture.width / columns, (y1 - y0) * picture.height / rows
    corner = (x0 * picture.width + left * width, y0 * picture.height + top * height)
    part = picture.convert("RGB").resize(
        (2 * _SIDE * _CELL,) * 2, box=(corner[0], corner[1], corner[0] + _SIDE * width, corner[1] + _SIDE * height)
    )
    kept = io.BytesIO()
    part.save(kept, "WEBP", quality=70)
    data = f"data:image/webp;base64,{base64.b64encode(kept.getvalue()).decode()}"
    return Excerpt(data, one.word_ids[chosen], one.scores[chosen])


def _sea(store: LabelStore, excerpt: Excerpt, palette: Palette) -> Drawing:
    drawing = Drawing(960, 360, "What SEA pulls where", palette)
    drawn = sampling.draw(excerpt.word_ids, excerpt.scores, (_SIDE, _SIDE), sampling.generator(0, 0, 0))
    kept = sampling.one_patch_per_word(drawn.words, np.random.default_rng(0))
    left, top, size = 20, 60, _SIDE * _CELL
    drawing.text(left, 24, "1  One patch of each window", bold=True)
    drawing.text(left, 42, "and one word for it, by its score (Eq. 7)", size=12, color="soft")
    drawing.image(left, top, size, excerpt.picture)
    for row in range(0, _SIDE, 2):
        for column in range(0, _SIDE, 2):
            drawing.box(left + column * _CELL, top + row * _CELL, 2 * _CELL, 2 * _CELL, line="#fff", thick=2, round_=0)
    for patch in drawn.patches:
        row, column = divmod(int(patch), _SIDE)
        drawing.box(
            left + column * _CELL + 2, top + row * _CELL + 2, _CELL - 4, _CELL - 4, line="#ffb300", thick=3, round_=3
        )
    often = (excerpt.word_ids[:, 0] == drawn.words[kept, None]).sum(-1)  # how many patches have the word as their best
    shown = kept[np.argsort(-often, kind="stable")[: len(_PLACES)]]
    _chances(drawing, store, excerpt, int(drawn.patches[shown[0]]), int(drawn.words[shown[0]]))
    _space(drawing, [store.words[drawn.words[index]] for index in shown])
    return drawing


def _chances(drawing: Drawing, store: LabelStore, excerpt: Excerpt, patch: int, word: int) -> None:
    """The words of one patch as bars: their shares of its scores."""
    x, y = 330, 60
    drawing.text(x, 24, "2  One patch for each word", bold=True)
    drawing.text(x, 42, "of a batch; here one patch's chances", size=12, color="soft")
    ids, scores = excerpt.word_ids[patch], excerpt.scores[patch]
    shares = scores[ids >= 0] / scores[ids >= 0].sum()
    for number, (one, share) in enumerate(zip(ids[ids >= 0], shares, strict=True)):
        middle = y + 14 + number * 26
        mine = int(one) == word
        drawing.text(x + 104, middle + 4, store.words[one], anchor="end", bold=mine)
        drawing.box(x + 112, middle - 7, 560 * float(share), 14, line="none", fill="warm" if mine else "line", round_=2)
        drawing.text(x + 118 + 560 * float(share), middle + 4, f"{share:.0%}", size=11, color="soft")


def _space(drawing: Drawing, words: list[str]) -> None:
    """The LLM's space: each visual token is pulled to its word."""
    x, y, size = 650, 60, 280
    drawing.text(x, 24, "3  Pull each visual token to its word", bold=True)
    drawing.text(x, 42, "and away from the other words (Eq. 9)", size=12, color="soft")
    drawing.box(x, y, size, size - 16, fill="fill")
    for number, (word, (across, down)) in enumerate(zip(words, _PLACES, strict=False)):
        at = (x + 26 + across * (size - 60), y + 24 + down * (size - 70))
        start = (at[0] + (58 if across < 0.5 else -58), at[1] + (34 if number % 2 == 0 else -30))
        drawing.arrow(
            [start, (at[0] + (7 if across < 0.5 else -7), at[1] + (4 if number % 2 == 0 else -4))], color="warm"
        )
        drawing.box(start[0] - 6, start[1] - 6, 12, 12, line="none", fill="warm", round_=2)
        drawing.dot(*at, color="accent")
        drawing.text(at[0], at[1] + (-9 if number % 2 == 0 else 18), word, anchor="middle", size=12)
    drawing.box(x + 4, y + size - 6, 10, 10, line="none", fill="warm", round_=2)
    drawing.text(x + 20, y + size + 4, "visual token", size=12, color="soft")
    drawing.dot(x + 118, y + size, color="accent")
    drawing.text(x + 128, y + size + 4, "a word's embedding", size=12, color="soft")


def _recipe(palette: Palette) -> Drawing:
    drawing = Drawing(960, 300, "A recipe's stages and what they train", palette)
    stages = (
        ("align", "SEA alone: loss.lm 0", {"tower": "frozen", "projector": "trains", "LLM": "not loaded"}, ["L_a"]),
        (
            "language",
            "captions or conversations",
            {"tower": "frozen", "projector": "trains", "LLM": "trains"},
            ["L_lm", "L_a"],
        ),
    )
    for number, (name, about, parts, losses) in enumerate(stages):
        x = 20 + number * 490
        drawing.box(x, 20, 430, 220)
        drawing.text(x + 16, 46, f"stage {number + 1}: {name}", bold=True, size=15)
        drawing.text(x + 16, 66, about, size=12, color="soft")
        for place, (part, state) in enumerate(parts.items()):
            left = x + 16 + place * 138
            color = {"trains": "warm", "frozen": "line", "not loaded": "line"}[state]
            drawing.box(left, 86, 118, 62, line=color, fill="fill", thick=2.5, dashed=state == "not loaded")
            drawing.text(left + 59, 112, part, anchor="middle", bold=True)
            drawing.text(left + 59, 132, state, anchor="middle", size=12, color="warm" if state == "trains" else "soft")
            if place:
                drawing.arrow([(left - 20, 117), (left - 3, 117)])
        for place, loss in enumerate(reversed(losses)):
            middle = x + 16 + 138 * (1 + place) + 59
            drawing.arrow([(middle, 196), (middle, 152)], color="accent", thick=2)
            what = {"L_a": "L_a: words of the labels", "L_lm": "L_lm: the text"}[loss]
            drawing.text(middle, 214, what, anchor="middle", size=12, color="accent", bold=True)
    drawing.arrow([(452, 130), (506, 130)], thick=2.5)
    drawing.text(480, 120, "model/", anchor="middle", size=12, color="soft")
    drawing.text(
        20,
        272,
        "Each stage begins with the model that the one before left. A part trains if it has a learning rate.",
        color="soft",
    )
    return drawing


_COMMANDS = {
    "before": {"plan": "hours, disk, cost", "probe": "which encoder and sign"},
    "labels": {
        "label": "words for every patch",
        "status": "how far, what is bad",
        "verify": "hash all again",
        "push, pull": "the hub",
        "merge, select": "folders of folders",
    },
    "model": {
        "init": "tower + LLM",
        "recipes": "the papers' rows",
        "tokens": "what a row trains",
        "train": "SEA, BASIC or both",
        "teacher": "BASIC's targets, stored",
    },
    "look": {"evaluate": "does it look at the photo?", "inspect": "labels in figures", "report": "one HTML file"},
    "away": {"export": "for other programs", "eval-commands": "the papers' benchmarks"},
}


def _commands(palette: Palette) -> Drawing:
    drawing = Drawing(960, 330, "Which command is for what", palette)
    for number, (heading, commands) in enumerate(_COMMANDS.items()):
        x = 16 + number * 190
        drawing.text(x, 26, heading, bold=True, size=15, color="accent")
        if number:
            drawing.arrow([(x - 28, 21), (x - 8, 21)])
        for place, (name, about) in enumerate(commands.items()):
            y = 42 + place * 56
            main = name in {"label", "train"}
            drawing.box(x, y, 168, 46, fill="fill", line="warm" if main else "line", thick=2.5 if main else 1.2)
            drawing.text(x + 10, y + 19, name, bold=True)
            drawing.text(x + 10, y + 36, about, size=12, color="soft")
    return drawing


def named_commands() -> Iterator[str]:
    """The commands that the diagram shows."""
    for commands in _COMMANDS.values():
        for names in commands:
            yield from names.split(", ")

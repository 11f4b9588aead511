"""The tiny world of the tests: eight colours as words, drawn photos, an encoder with a planted answer.

Also a program: `python -m tests.support.world label …` is the command line with this encoder in place of the packaged
one.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sea_pipeline.encoders import Preprocess
from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.labels.store import Labels

Label = Callable[..., StageRun]
"""What the fixture `label` is: settings of `label` -> its run."""
Shelved = Callable[..., Path]
"""What the fixture `shelved` is: a count of photos and settings of `label` -> a folder to be read alone."""
BATCHES = "SEA_TEST_BATCHES"
"""The variable that makes a program of `main` a `StoppingEncoder`'s."""
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "grey": (140, 140, 120),
    "brown": (150, 75, 10),
}


class ColourEncoder:
    """A patch's embedding is its mean colour, a word's that of the colour it names, or else one of its own; 3 rows by 4
    columns, sign +."""

    spec = "packaged"
    grid = (3, 4)
    width = 3
    sign = 1
    preprocess = Preprocess(size=48)
    device = "cpu"

    def __init__(self, version: str = "1") -> None:
        self.version = version
        self.embedded_words = 0

    def fields(self) -> Mapping[str, Any]:
        return {"name": "colours", "version": self.version, "preprocess": self.preprocess.fields()}

    def word_fields(self) -> Mapping[str, Any]:
        return {"name": "colours", "version": self.version}

    def load(self) -> None: ...

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        rows, columns = self.grid
        cells = pixels.float().view(len(pixels), rows, 48 // rows, columns, 48 // columns, 3)
        return F.normalize(cells.mean((2, 4)).flatten(1, 2) / 127.5 - 1, dim=-1)

    def words(self, words: Sequence[str], advance: Callable[[int], None]) -> torch.Tensor:
        self.embedded_words += len(words)
        advance(len(words))
        colours = [COLOURS.get(word) or tuple(hashlib.sha256(word.encode()).digest()[:3]) for word in words]
        return F.normalize(torch.tensor(colours) / 127.5 - 1, dim=-1)


class StoppingEncoder(ColourEncoder):
    """Encodes that many batches and is stuck in the next one, so that who kills its program need not be quick."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self._left = batches

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        self._left -= 1
        while self._left < 0:
            time.sleep(1)
        return super().patches(pixels)


def draw(path: Path, cells: Sequence[Sequence[str]], size: tuple[int, int] = (96, 96)) -> Path:
    """Saves a picture whose rows and columns of equal cells have the named colours."""
    values = np.array([[COLOURS[name] for name in row] for row in cells], np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def draw_folder(folder: Path, count: int, seed: int = 0) -> Path:
    """A folder of `count` pictures of the encoder's size and grid, in two subfolders and at its top."""
    random = np.random.default_rng(seed)
    for number in range(count):
        cells = [[str(random.choice(list(COLOURS))) for _ in range(4)] for _ in range(3)]
        draw(folder / ("", "a", "b")[number % 3] / f"{number:03d}.png", cells, size=(48, 48))
    return folder


def draw_but_one(folder: Path, count: int) -> Path:
    """As `draw_folder`, but the fourth file is empty."""
    draw_folder(folder, count)
    (folder / "003.png").write_bytes(b"")
    return folder


def draw_growing(folder: Path) -> Path:
    """Ten of sixteen pictures; `grow` brings the others, whose ids lie between theirs."""
    draw_folder(folder, 16)
    for number in (1, 4, 7, 8, 12, 15):
        (path,) = folder.rglob(f"{number:03d}.png")
        moved = folder.parent / "later" / path.relative_to(folder)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    return folder


def grow(folder: Path) -> None:
    shutil.copytree(folder.parent / "later", folder, dirs_exist_ok=True)


def word_file(path: Path) -> Path:
    path.write_text("\n".join(COLOURS))
    return path


def main() -> None:
    from sea_pipeline import cli
    from sea_pipeline.labels import run as label_run

    batches = os.environ.get(BATCHES)
    encoder = StoppingEncoder(int(batches)) if batches else ColourEncoder()
    label_run.load_encoder = lambda spec, device, options: encoder  # type: ignore[assignment]
    torch.set_num_threads(1)
    cli.main()


GRID = [["red", "green", "blue", "grey"], ["brown", "red", "red", "cyan"], ["yellow", "magenta", "green", "brown"]]


def best(labels: Labels) -> list[list[str]]:
    names = list(COLOURS)
    return [[names[word] for word in row] for row in labels.word_ids[:, 0].reshape(labels.grid)]


def similarities(encoder: ColourEncoder, cells: list[list[str]]) -> np.ndarray:
    """s of every drawn cell with every word, in float64."""
    drawn = [name for row in cells for name in row]
    patches, table = (encoder.words(names, lambda _: None).double() for names in (drawn, list(COLOURS)))
    return (patches @ table.T).numpy()


if __name__ == "__main__":
    main()

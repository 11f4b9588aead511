"""Labels of one crop and grid on another tower's: objects in known places of photos that are not square."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlavaImageProcessor, SiglipImageProcessor

from sea_pipeline import open_labels
from sea_pipeline.encoders.base import Pixels
from sea_pipeline.label_cache import label_cache
from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.run import LabelSettings
from sea_pipeline.labels.store import LabelStore
from tests.support.world import COLOURS, ColourEncoder, word_file
from trainer.data.dataset import Collator, TrainingData, TrainingLabels
from trainer.data.geometry import processor_box
from trainer.recipes.recipe import Sea

pytestmark = pytest.mark.slow

SIZES = {"wide.png": (360, 216), "tall.png": (216, 360)}
OBJECTS = {
    "red": (10, 20, 50, 110),
    "green": (120, 30, 200, 100),
    "blue": (90, 130, 180, 190),
    "cyan": (60, 50, 110, 80),
}
"""x0, y0, x1, y1 in the wide photo, in pixels; the tall one is the wide one turned over its diagonal."""
PLAIN: dict[str, Any] = {"do_normalize": False, "do_rescale": False}
SQUARE = {"height": 378, "width": 378}


class View(NamedTuple):
    """A tower or an encoder: its grid, its image processor, and which rectangle of a photo it shows."""

    grid: tuple[int, int]
    processor: Any
    shown: str
    share: float = 1
    """Of either side of what is shown, what the grid covers."""


CROP: dict[str, Any] = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, **PLAIN}
VIEWS = {
    "clip": View((24, 24), CLIPImageProcessor(**CROP), "centre"),
    "siglip": View((27, 27), SiglipImageProcessor(size=SQUARE, **PLAIN), "whole"),
    "siglip of 384": View(
        (27, 27), SiglipImageProcessor(size={"height": 384, "width": 384}, **PLAIN), "whole", 378 / 384
    ),
    "padded": View((24, 24), LlavaImageProcessor(do_pad=True, image_mean=[0, 0, 0], **CROP), "padded"),
}


def rectangle(shown: str, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """left, top, width, height in pixels of the photo; a padded square begins outside it."""
    if shown == "whole":
        return 0, 0, *size
    side = min(size) if shown == "centre" else max(size)
    return (size[0] - side) / 2, (size[1] - side) / 2, side, side


class ViewEncoder(ColourEncoder):
    """The colour encoder, looking through another model's image processor and grid."""

    def __init__(self, view: View) -> None:
        super().__init__(view.shown)
        self.grid = view.grid
        self._view = view

    def preprocess(self, image: Image.Image) -> Pixels:  # type: ignore[override]
        pixels = self._view.processor(image, return_tensors="np")["pixel_values"][0]
        return Pixels(pixels.transpose(1, 2, 0).astype(np.uint8), processor_box(self._view.processor, *image.size))

    def fields(self) -> dict[str, Any]:
        return {"name": self._view.shown}

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        rows, columns = self.grid
        side = pixels.shape[1]
        cells = pixels.float().view(-1, rows, side // rows, columns, side // columns, 3).mean((2, 4)).flatten(1, 2)
        return torch.nn.functional.normalize(cells / 127.5 - 1, dim=-1)


def colour_names(photo: Image.Image) -> np.ndarray[Any, Any]:
    """The index in `COLOURS` of every pixel: (height, width)."""
    values, table = np.asarray(photo, np.int64), np.array(list(COLOURS.values()))
    names: np.ndarray[Any, Any] = (np.abs(values[:, :, None] - table).sum(-1) == 0).argmax(-1)
    return names


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects before a grey wall; none of them stands in the other photo's place."""
    folder = tmp_path_factory.mktemp("photos")
    wide = Image.new("RGB", SIZES["wide.png"], COLOURS["grey"])
    for name, box in OBJECTS.items():
        wide.paste(COLOURS[name], box)
    wide.save(folder / "wide.png")
    wide.transpose(Image.Transpose.TRANSPOSE).save(folder / "tall.png")
    return folder


def labelled(source: str, photos: Path, out: Path) -> LabelStore:
    if not out.exists():
        words = word_file(out.with_suffix(".txt"))
        settings = LabelSettings.of(images=str(photos), wordlist=str(words), top_n=1, out=out, device="cpu")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(label_run, "load_encoder", lambda *given: ViewEncoder(VIEWS[source]))
            label_run.label_images(settings)
    return open_labels(out)


def planted(source: View, target: View, photo: Path) -> Iterator[tuple[int, int]]:
    """What the photo's own pixels say of each target patch: the patch and its word, -1 where it has none.

    A source cell that shows more than one colour tells nothing, nor does a patch whose centre lies on the edge of two
    source cells, as the middle row of 27 does among 24: they are left out.
    """
    image = Image.open(photo)
    names = colour_names(image)
    (left, top, width, height), (rows, columns) = rectangle(source.shown, image.size), source.grid
    to_left, to_top, *sides = rectangle(target.shown, image.size)
    to_width, to_height = (side * target.share for side in sides)
    for patch in range(target.grid[0] * target.grid[1]):
        y, x = divmod(patch, target.grid[1])
        from_column = (to_left + to_width * (x + 0.5) / target.grid[1] - left) / (width / columns)
        from_row = (to_top + to_height * (y + 0.5) / target.grid[0] - top) / (height / rows)
        if not (0 <= from_row < rows and 0 <= from_column < columns):
            yield patch, -1
            continue
        if min(abs(place - round(place)) for place in (from_row, from_column)) < 1e-3:
            continue
        x0, y0 = left + int(from_column) * width / columns, top + int(from_row) * height / rows
        x1, y1 = x0 + width / columns, y0 + height / rows
        if min(x0, y0) < 0 or x1 > image.width or y1 > image.height:  # padding, of a colour of its own
            continue
        there = names[max(0, int(y0) - 2) : int(y1) + 3, max(0, int(x0) - 2) : int(x1) + 3]  # bicubic looks further
        if there.min() == there.max():
            yield patch, int(there[0, 0])


PAIRS = [("clip", "siglip"), ("clip", "padded"), ("siglip", "clip"), ("siglip", "padded"), ("padded", "siglip")]
PAIRS += [("clip", "siglip of 384"), ("padded", "siglip of 384")]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_training_batch_has_the_words_of_what_the_tower_sees(
    photos: Path, shelf: Path, source: str, target: str
) -> None:
    """Objects are where they stand, whatever rectangle labels and tower show."""
    view, store = VIEWS[target], labelled(source, photos, shelf / f"seen-by-{source}")
    m = view.grid[0] * view.grid[1]
    rows = [{"id": name, "images": [name], "input_ids": [1, 7, 2], "trained": [False, False, True]} for name in SIZES]
    processor = SimpleNamespace(image_processor=view.processor, image_token_id=7)
    folder: Any = SimpleNamespace(processor=processor, grid=view.grid, reach=(view.share, view.share))
    data = TrainingData(
        rows,  # type: ignore[arg-type]
        partial(Path.joinpath, photos),
        folder,
        labels=TrainingLabels(label_cache(store), Sea(window=1), True, None),
    )
    samples = [data[number] for number in range(len(rows))]
    for sample, photo in zip(samples, SIZES, strict=True):
        expected = dict(planted(VIEWS[source], view, photos / photo))
        drawn = dict(zip(sample["patches"].tolist(), sample["words"].tolist(), strict=True))
        assert {patch: drawn.get(patch, -1) for patch in expected} == expected
        assert len(expected) > 0.55 * m
        seen = {list(COLOURS)[word] for word in expected.values() if word >= 0}
        assert {"green", "blue", "grey"} <= seen
        assert (-1 in expected.values()) is (source == "clip" or target == "padded")
        assert ("red" in seen) is (source != "clip" and target != "clip")
        assert sample["images"] is not None
        assert agree(drawn.items(), sample["images"], view.grid) > 0.85
    batch = Collator(data, 0, seed=0)(samples)
    pairs = list(zip(batch["sea_patches"].tolist(), batch["sea_words"].tolist(), strict=True))
    assert {word for _, word in pairs} == set(np.concatenate([sample["words"] for sample in samples]).tolist())
    for patch, word in pairs:
        drawn = dict(zip(samples[patch // m]["patches"], samples[patch // m]["words"], strict=True))
        assert drawn[patch % m] == word


def agree(pairs: Any, images: torch.Tensor, grid: tuple[int, int]) -> float:
    """Share of patches whose word is the colour nearest to the pixels in the patch's centre."""
    side = images.shape[-1] // grid[0]
    table = torch.tensor(list(COLOURS.values())).float()
    right = []
    for patch, word in pairs:
        row, column = divmod(patch, grid[1])
        colour = images[0, :, row * side + side // 2, column * side + side // 2].float()
        right.append(int((table - colour).norm(dim=-1).argmin()) == word)
    return sum(right) / len(right)

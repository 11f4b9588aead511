"""Boxes against the pixels of the real image processors; carried labels against a loop over cells."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import BitImageProcessor, CLIPImageProcessor, LlavaImageProcessor, SiglipImageProcessor

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import CropBox, inside
from sea_pipeline.labels.store import Labels
from trainer.data.geometry import carried, placed, processor_box, same_place

PLAIN: dict[str, Any] = {"do_rescale": False, "do_normalize": False}
"""Colours come out as they go in."""
PADDED = PLAIN | {"do_pad": True, "image_mean": [0, 0, 0]}


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


PROCESSORS: dict[str, Any] = {
    "clip": CLIPImageProcessor(size={"shortest_edge": 112}, crop_size=square(112), **PLAIN),
    "dinov2": BitImageProcessor(size={"shortest_edge": 128}, crop_size=square(112), **PLAIN),
    "siglip": SiglipImageProcessor(size=square(96), **PLAIN),
    "siglip, not square": SiglipImageProcessor(size={"height": 64, "width": 128}, **PLAIN),
    "llava": LlavaImageProcessor(size={"shortest_edge": 112}, crop_size=square(112), **PLAIN),
    "llava, padded": LlavaImageProcessor(size={"shortest_edge": 112}, crop_size=square(112), **PADDED),
    "llava, padded and cropped": LlavaImageProcessor(size={"shortest_edge": 128}, crop_size=square(112), **PADDED),
    "not square": CLIPImageProcessor(size={"shortest_edge": 112}, crop_size={"height": 100, "width": 80}, **PLAIN),
    "crop beyond the image": CLIPImageProcessor(size={"shortest_edge": 80}, crop_size=square(112), **PLAIN),
    "no resize": CLIPImageProcessor(do_resize=False, size={"shortest_edge": 7}, crop_size=square(64), **PLAIN),
    "no crop": CLIPImageProcessor(do_center_crop=False, size=square(96), crop_size=square(8), **PLAIN),
}


def gradient(width: int, height: int) -> Image.Image:
    """Red is x, green is y, and blue says that this is the image and not its padding."""
    x, y = ((np.arange(side) + 0.5) / side * 255 for side in (width, height))
    red, green = np.meshgrid(x, y)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 255)], -1).round().astype(np.uint8))


def seen(pixels: np.ndarray[Any, Any]) -> CropBox:
    """The box that the colours tell: along each side a line through them, continued to the edges."""
    shown = pixels[2] > 250
    edges = []
    for channel, axis in ((0, 0), (1, 1)):
        count = pixels.shape[2 - axis]
        places = np.flatnonzero(shown.any(axis))[3:-3]  # away from where the image mixes with its padding
        colours = [pixels[channel].take(at, 1 - axis)[shown.take(at, 1 - axis)].mean() for at in places]
        slope, start = np.polyfit((places + 0.5) / count, np.array(colours) / 255, 1)
        edges.append((start, start + slope))
    (x0, x1), (y0, y1) = edges
    return (x0, y0, x1, y1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (301, 223), (120, 490), (112, 112)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_box_is_what_the_pixels_show(name: str, size: tuple[int, int]) -> None:
    processor = PROCESSORS[name]
    pixels = processor(gradient(*size), return_tensors="np")["pixel_values"][0].astype(np.float64)
    assert processor_box(processor, *size) == pytest.approx(seen(pixels), abs=0.012)


@pytest.mark.parametrize(
    ("name", "size", "box"),
    [
        ("clip", (400, 200), (0.25, 0, 0.75, 1)),
        ("clip", (200, 800), (0, 0.375, 1, 0.625)),
        ("dinov2", (256, 256), (0.0625, 0.0625, 0.9375, 0.9375)),
        ("siglip", (31, 77), (0, 0, 1, 1)),
        ("llava, padded", (200, 100), (0, -0.5, 1, 1.5)),
        ("llava, padded", (201, 100), (0, -0.5, 1, 1.51)),
        ("llava, padded", (1, 100), (-49, 0, 51, 1)),
        ("llava, padded and cropped", (128, 64), (0.0625, -0.375, 0.9375, 1.375)),
    ],
)
def test_boxes_at_known_points(name: str, size: tuple[int, int], box: CropBox) -> None:
    assert processor_box(PROCESSORS[name], *size) == pytest.approx(box, abs=1e-12)


def test_a_box_inside_a_crop() -> None:
    assert inside((0.25, 0, 0.75, 1), (0.5, 0.2, 0.9, 0.4)) == pytest.approx((0.6, 0.2, 0.8, 0.4))
    assert inside((0, -0.5, 1, 1.5), (0, 0.25, 1, 0.75)) == pytest.approx((0, 0, 1, 1))
    picture, crop = gradient(400, 300), (100, 60, 340, 200)
    pixels = PROCESSORS["dinov2"](picture.crop(crop), return_tensors="np")["pixel_values"][0].astype(np.float64)
    box = inside(processor_box(PROCESSORS["dinov2"], 240, 140), (100 / 400, 60 / 300, 340 / 400, 200 / 300))
    assert box == pytest.approx(seen(pixels), abs=0.012)


def labels(grid: tuple[int, int], box: CropBox, top_n: int = 2) -> Labels:
    """Every patch has words of its own."""
    count = grid[0] * grid[1]
    word_ids = np.arange(count * top_n, dtype=np.int32).reshape(count, top_n)
    return Labels(word_ids, (word_ids + 1).astype(np.float32), grid, box)


def slowly(given: Labels, grid: tuple[int, int], box: CropBox) -> tuple[list[list[int]], list[list[float]]]:
    """One target cell after the other, in exact arithmetic."""
    source, target = ([Fraction(edge) for edge in one] for one in (given.crop_box, box))
    words, scores = [], []
    for row in range(grid[0]):
        for column in range(grid[1]):
            y = target[1] + (target[3] - target[1]) * Fraction(2 * row + 1, 2 * grid[0])
            x = target[0] + (target[2] - target[0]) * Fraction(2 * column + 1, 2 * grid[1])
            from_row = math.floor((y - source[1]) / (source[3] - source[1]) * given.grid[0])
            from_column = math.floor((x - source[0]) / (source[2] - source[0]) * given.grid[1])
            there = 0 <= from_row < given.grid[0] and 0 <= from_column < given.grid[1]
            patch = from_row * given.grid[1] + from_column
            words.append(given.word_ids[patch].tolist() if there else [-1] * given.word_ids.shape[1])
            scores.append(given.scores[patch].tolist() if there else [0.0] * given.word_ids.shape[1])
    return words, scores


WHOLE: CropBox = (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("grids", [((27, 27), (14, 14)), ((3, 4), (5, 2)), ((5, 2), (3, 4)), ((4, 4), (2, 8))])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (WHOLE, WHOLE),
        ((0.25, 0.0, 0.75, 1.0), WHOLE),
        (WHOLE, (0.25, 0.125, 0.75, 0.875)),
        ((0.1, 0.0, 0.53, 0.81), (0.3, 0.2, 0.9, 1.0)),
        (WHOLE, (0.0, -0.5, 1.0, 1.5)),
        ((0.0, 0.0, 0.25, 0.25), (0.5, 0.5, 1.0, 1.0)),
    ],
)
def test_a_cell_takes_the_labels_where_its_centre_lies(
    grids: tuple[tuple[int, int], tuple[int, int]], source: CropBox, target: CropBox
) -> None:
    given = labels(grids[0], source)
    found = carried(given, grids[1], target)
    words, scores = slowly(given, grids[1], target)
    assert found.word_ids.tolist() == words
    assert found.scores.tolist() == scores
    assert (found.word_ids.dtype, found.scores.dtype) == (np.int32, np.float32)
    assert (found.grid, found.crop_box) == (grids[1], target)


@pytest.mark.parametrize("grid", [(1, 1), (3, 4), (27, 27), (24, 24)])
@pytest.mark.parametrize("box", [WHOLE, (0.16666667163372040, 0.0, 0.8333333134651184, 1.0)])
def test_carried_to_where_they_are_labels_stay(grid: tuple[int, int], box: CropBox) -> None:
    given = labels(grid, box)
    found = carried(given, grid, box)
    assert np.array_equal(found.word_ids, given.word_ids)
    assert np.array_equal(found.scores, given.scores)


@pytest.mark.parametrize(("moved", "same"), [(0, True), (0.24, True), (-0.24, True), (0.26, False), (-0.26, False)])
@pytest.mark.parametrize("edge", range(4))
def test_a_quarter_of_a_cell_is_the_same_place(edge: int, moved: float, same: bool) -> None:
    box = (0.25, 0.1, 0.75, 0.9)
    cell = (0.5 / 4, 0.8 / 3)[edge % 2]  # 3 rows, 4 columns
    edges = list(box)
    edges[edge] += moved * cell
    given = labels((3, 4), (edges[0], edges[1], edges[2], edges[3]))
    assert same_place(given, (3, 4), box) is same
    assert not same_place(given, (4, 3), box)


@pytest.mark.parametrize("transfer", [False, True])
def test_no_bar_has_a_word(transfer: bool) -> None:
    """The encoder that made the labels saw the bars, too, and named them."""
    given = labels((5, 4), (0.0, -0.5, 1.0, 1.5))
    found = placed(given, (5, 4), given.crop_box, transfer=transfer, image_id="a.jpg")
    for patch in range(20):
        shown = patch // 4 in (1, 2, 3)  # centres at -0.3, 0.1, 0.5, 0.9 and 1.3
        assert found.word_ids[patch].tolist() == (given.word_ids[patch].tolist() if shown else [-1, -1])
        assert found.scores[patch].tolist() == (given.scores[patch].tolist() if shown else [0, 0])
    assert (found.grid, found.crop_box) == (given.grid, given.crop_box)
    if transfer:  # to a finer grid: centres from -0.4 in steps of 0.2, of which 0 to 0.8 are in the image
        finer = placed(given, (10, 4), given.crop_box, transfer=True, image_id="a.jpg").word_ids.reshape(10, 8)
        assert (finer >= 0).all(1).tolist() == (finer >= 0).any(1).tolist() == [2 <= row < 7 for row in range(10)]


def test_another_place_needs_leave() -> None:
    given = labels((3, 4), (0.125, 0.0, 0.875, 1.0))
    assert placed(given, (3, 4), (0.13, 0.0, 0.88, 1.0), transfer=False, image_id="a.jpg") is given
    for grid, box in (((14, 14), given.crop_box), ((3, 4), WHOLE)):
        with pytest.raises(UserError) as caught:
            placed(given, grid, box, transfer=False, image_id="a.jpg")
        message = str(caught.value)
        assert message.startswith("labels of 'a.jpg': expected the tower's grid ")
        for part in (str(grid), "(3, 4)", "(0.125, 0.0, 0.875, 1.0)", "labels.transfer: true"):
            assert part in message
        found = placed(given, grid, box, transfer=True, image_id="a.jpg")
        assert np.array_equal(found.word_ids, carried(given, grid, box).word_ids)

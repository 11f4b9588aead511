"""Square crops of an image: their pixels, boxes and names, and their labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import SiglipVisionConfig

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import (
    LEAST_AREA,
    crop_id,
    image_and_crop,
    inside,
    labelled_crop,
    patch_reach,
    random_square,
    scales_reach,
)
from tests.support.world import COLOURS, ColourEncoder, draw, draw_folder
from trainer.towers import S2TowerConfig, tower_reach


def gradient(width: int, height: int) -> Image.Image:
    """A picture whose red and green say where a pixel is."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(200, 120), (120, 200), (77, 77), (1, 1), (2, 250)])
def test_a_crop_is_the_square_its_box_says(width: int, height: int) -> None:
    image = gradient(width, height)
    for number in range(1, 40):
        crop, (x0, y0, x1, y1) = labelled_crop(image, "a", number)
        side = crop.width
        assert crop.size == (side, side)
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
        assert side**2 >= LEAST_AREA * min(width, height) ** 2 - side
        corner, opposite = np.asarray(crop)[0, 0], np.asarray(crop)[-1, -1]
        assert corner[:2].tolist() == [round(x0 * width), round(y0 * height)]
        assert opposite[:2].tolist() == [round(x1 * width) - 1, round(y1 * height) - 1]


def test_which_part_a_crop_is_depends_on_id_and_number_alone() -> None:
    image = gradient(200, 120)
    boxes = [labelled_crop(image, name, number)[1] for name in ("a", "b") for number in (1, 2, 3)]
    assert len(set(boxes)) == 6
    assert boxes == [labelled_crop(image, name, number)[1] for name in ("a", "b") for number in (1, 2, 3)]


def test_crops_reach_every_size_and_place() -> None:
    random = np.random.default_rng(0)
    drawn = [random_square(gradient(100, 100), 0.25, random)[1] for _ in range(400)]
    sides = np.array([x1 - x0 for x0, _, x1, _ in drawn])
    assert sides.min() < 0.55
    assert sides.max() > 0.95
    assert min(x0 for x0, *_ in drawn) == 0
    assert max(x1 for _, _, x1, _ in drawn) == 1


def test_names_of_crops() -> None:
    assert crop_id("a/b.jpg", 0) == "a/b.jpg"
    for name, number in (("a/b.jpg", 0), ("a/b.jpg", 7), ("a#crop", 12)):
        assert image_and_crop(crop_id(name, number)) == (name, number)
    assert inside((0.5, 0, 1, 1), (0.2, 0.4, 0.6, 0.8)) == pytest.approx((0.4, 0.4, 0.6, 0.8))


def test_labels_of_crops_are_those_of_their_pixels(label: Callable[..., Any], tmp_path: Path) -> None:
    """The left half of the picture is red, the right half blue: each patch has the colour its place says."""
    draw(tmp_path / "images" / "two.png", [["red", "blue"]], size=(96, 48))
    run = label(images=str(tmp_path / "images"), crops=12)
    store = open_labels(run.ledger.root)
    assert set(store.ids) == {crop_id("two.png", number) for number in range(13)}
    assert store.manifest["fields"]["crops"]["per_image"] == 12
    words, seen = list(store.words), set()
    for number in range(1, 13):
        labels = store[crop_id("two.png", number)]
        x0, _, x1, _ = labels.crop_box
        for patch, best in enumerate(labels.word_ids[:, 0]):
            left = x0 + (patch % 4) / 4 * (x1 - x0)
            right = left + (x1 - x0) / 4
            if right <= 0.49 or left >= 0.51:
                assert words[best] == ("red" if right <= 0.49 else "blue")
                seen.add(words[best])
    assert seen == {"red", "blue"}


def test_crops_are_part_of_what_a_folder_is(label: Callable[..., Any], tmp_path: Path, encoder: ColourEncoder) -> None:
    folder = draw_folder(tmp_path / "images", 2)
    plain = label(images=str(folder)).ledger.dataset
    assert "crops" not in plain.fields
    with pytest.raises(UserError, match="crops"):
        label(images=str(folder), crops=2)
    draw(folder / "x#crop1.png", [[next(iter(COLOURS))]])
    with pytest.raises(UserError, match="names crops; rename"):
        label(images=str(folder), crops=2, out=tmp_path / "other")


@pytest.mark.parametrize("scales", [(1,), (1, 2), (2,), (1, 2, 3)])
def test_cells_of_s2_lie_in_their_reach(scales: tuple[int, ...]) -> None:
    """SigLIP SO400M's 27 patches of 14 leave out 6 of 384 pixels of each tile, at all scales."""
    places = []
    for scale in scales:
        joined = np.concatenate([tile + (np.arange(27) + 0.5) * 14 / 384 for tile in range(scale)]) / scale
        places.append(joined.reshape(27, scale).mean(1))
    middles, reach = np.mean(places, 0), patch_reach((27, 27), (14, 14), (384, 384))
    found = (np.arange(27) + 0.5) / 27 * scales_reach(reach, scales)[1]
    assert np.abs(found - middles).max() * 27 < (1e-9 if scales == (1,) else 0.12)
    assert np.abs(found - middles)[-1] * 27 < 0.02
    assert scales_reach((1.0, 1.0), scales) == (1.0, 1.0)
    tower = S2TowerConfig(base=SiglipVisionConfig(image_size=384, patch_size=14), scales=list(scales))
    assert tower_reach(tower, (384 * max(scales),) * 2) == scales_reach(reach, scales)

"""Padded pixels against LLaVA's way written out: a canvas of the mean colour, then the tower's own processor by PIL."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import (
    AutoProcessor,
    BitImageProcessor,
    BitImageProcessorPil,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    ConvNextImageProcessor,
    LlavaImageProcessor,
    LlavaImageProcessorPil,
    SiglipImageProcessor,
    SiglipImageProcessorPil,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from sea_pipeline.core.errors import UserError
from tests.support.tiny_models import tiny_llm, tiny_model, tiny_vision
from trainer.model.aspect_ratio import pads, with_aspect_ratio, write_image_processor
from trainer.model.assemble import init_model
from trainer.model.load import open_model_folder
from trainer.model.parts import load_vision

HERE = Path("model")


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


CLIP = {"size": {"shortest_edge": 112}, "crop_size": square(112)}
DINOV2: dict[str, Any] = {
    "size": {"shortest_edge": 128},
    "crop_size": square(112),
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
PACKAGED: dict[str, Any] = CLIP | {"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}
KINDS: dict[str, tuple[Any, Any]] = {
    "clip": (CLIPImageProcessor(**CLIP), CLIPImageProcessorPil(**CLIP)),
    "siglip": (SiglipImageProcessor(size=square(96)), SiglipImageProcessorPil(size=square(96))),
    "bilinear": (ViTImageProcessor(size=square(96)), ViTImageProcessorPil(size=square(96))),
    "dinov2": (BitImageProcessor(**DINOV2), BitImageProcessorPil(**DINOV2)),
    "packaged": (CLIPImageProcessor(**PACKAGED), CLIPImageProcessorPil(**PACKAGED)),
    "not normalised": (
        CLIPImageProcessor(**CLIP, do_normalize=False),
        CLIPImageProcessorPil(**CLIP, do_normalize=False),
    ),
}
"""Each by torchvision, as models are loaded, and by PIL, as LLaVA has it."""
SIZES = [(1, 1), (100, 1), (1, 100), (61, 40), (40, 61), (37, 36), (301, 200), (200, 301), (113, 112), (640, 427)]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def expanded(image: Image.Image, mean: list[float]) -> Image.Image:
    """LLaVA's square: the image pasted at half the difference, rounded down, on the mean colour."""
    values, side = np.asarray(image), max(image.size)
    canvas = np.empty((side, side, 3), np.uint8)
    for channel in range(3):
        canvas[..., channel] = int(255 * mean[channel])
    top, left = (side - image.height) // 2, (side - image.width) // 2
    canvas[top : top + image.height, left : left + image.width] = values
    return Image.fromarray(canvas)


def levels(processor: Any, image: Image.Image) -> np.ndarray[Any, Any]:
    """What a processor gives, in levels of 0 to 255."""
    pixels = processor(image, return_tensors="np")["pixel_values"][0].astype(np.float64)
    if processor.do_normalize:
        mean, std = (np.array(each)[:, None, None] for each in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    return pixels * 255


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_padded_pixels_are_llavas(kind: str, tmp_path: Path) -> None:
    by_torch, by_pil = KINDS[kind]
    ours, exact = (with_aspect_ratio(one, "pad", HERE) for one in (by_torch, by_pil))
    assert (type(ours), type(exact)) == (LlavaImageProcessor, LlavaImageProcessorPil)
    ours.save_pretrained(tmp_path)
    saved = LlavaImageProcessor.from_pretrained(tmp_path)
    for size in SIZES:
        image = noise(*size)
        wanted = levels(by_pil, expanded(image, by_pil.image_mean))
        np.testing.assert_allclose(levels(ours, image), wanted, atol=2.001, err_msg=f"{size}")
        np.testing.assert_allclose(levels(exact, image), wanted, atol=1e-3, err_msg=f"{size}")
        assert np.array_equal(levels(saved, image), levels(ours, image)), size


def test_the_bars_are_there_and_of_the_mean_colour() -> None:
    """What the test above compares with is no crop: it could be of the middle alone."""
    pixels = levels(with_aspect_ratio(KINDS["clip"][0], "pad", HERE), Image.new("RGB", (300, 100), (255, 0, 0)))
    mean = [int(255 * value) for value in CLIPImageProcessor.image_mean]
    assert np.abs(pixels[:, :35] - np.array(mean)[:, None, None]).max() < 1e-3
    assert np.abs(pixels[:, 77:] - np.array(mean)[:, None, None]).max() < 1e-3
    assert np.abs(pixels[:, 40:72] - np.array([255, 0, 0])[:, None, None]).max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_square_is_the_processor_without_bars(kind: str) -> None:
    for own in KINDS[kind]:
        padded = with_aspect_ratio(own, "pad", HERE)
        for one, as_it_is in ((own, None), (own, "square"), (padded, None), (padded, "pad")):
            assert with_aspect_ratio(one, as_it_is, HERE) is one
        again = with_aspect_ratio(padded, "square", HERE)
        assert [pads(one) for one in (own, padded, again)] == [False, True, False]
        for size in ((61, 40), (40, 61)):
            assert np.array_equal(levels(again, noise(*size)), levels(own, noise(*size)))
            assert not np.array_equal(levels(padded, noise(*size)), levels(own, noise(*size)))


def test_a_processor_that_pads_behind_its_crop_is_no_padding_one() -> None:
    other = CLIPImageProcessor(**CLIP, do_pad=True)
    image = noise(200, 100)
    assert np.array_equal(levels(other, image), levels(KINDS["clip"][0], image))
    assert not pads(other)
    assert np.array_equal(
        levels(with_aspect_ratio(other, "pad", HERE), image),
        levels(with_aspect_ratio(KINDS["clip"][0], "pad", HERE), image),
    )


@pytest.mark.parametrize(
    "processor",
    [
        ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875),  # crops by a share of its own
        CLIPImageProcessor(**CLIP, do_rescale=False, image_mean=[123.0] * 3, image_std=[58.0] * 3),  # no colour
    ],
)
def test_what_cannot_be_done_behind_bars_is_refused_in_a_line(processor: Any) -> None:
    assert with_aspect_ratio(processor, "square", HERE) is processor
    with pytest.raises(UserError) as caught:
        with_aspect_ratio(processor, "pad", HERE)
    message = str(caught.value)
    assert message.startswith(f"image_aspect_ratio: pad: model: its image processor, {type(processor).__name__}, does")
    assert "leave image_aspect_ratio out" in message
    assert "\n" not in message


@pytest.mark.slow
@pytest.mark.parametrize("vision", ["dinov2", "packaged", "s2@1,2:clip", "s2@1,3:siglip"])
def test_every_tower_of_init_pads(vision: str, tmp_path: Path) -> None:
    scales, _, family = vision.rpartition(":")
    spec = f"{scales}:" if scales else ""
    spec += "packaged" if family == "packaged" else str(tiny_vision(tmp_path / "vision", family))
    model = init_model(spec, str(tiny_llm(tmp_path / "llm")), tmp_path / "model")
    own, folder = open_model_folder(model), open_model_folder(model, "pad")
    assert (own.other_pixels, folder.other_pixels) == (False, True)
    assert folder.grid == own.grid
    image, before = noise(61, 40), own.processor.image_processor
    ours = levels(folder.processor.image_processor, image)
    assert ours.shape == levels(before, image).shape
    np.testing.assert_allclose(ours, levels(before, expanded(image, before.image_mean)), atol=1e-3)
    fresh = load_vision(spec, own.config.dtype).image_processor  # as init has it, before it is saved and read
    np.testing.assert_allclose(levels(with_aspect_ratio(fresh, "pad", HERE), image), ours, atol=1e-3)


@pytest.mark.slow
def test_a_written_folder_gives_the_same_pixels_and_nothing_else_changes(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    file = model / "processor_config.json"
    mode = file.stat().st_mode
    file.chmod(0o444)
    folder = open_model_folder(model, "pad")
    write_image_processor(folder.processor.image_processor, model)
    assert file.stat().st_mode & 0o777 == 0o444
    file.chmod(mode)
    assert {name for name, content in before.items() if (model / name).read_bytes() != content} == {file.name}
    old, new = json.loads(before[file.name]), json.loads(file.read_text())
    assert new["image_processor"]["image_processor_type"] == "LlavaImageProcessor"
    assert old | {"image_processor": 0} == new | {"image_processor": 0}
    stock = AutoProcessor.from_pretrained(model)
    for size in SIZES:
        image = noise(*size)
        pixels = levels(folder.processor.image_processor, image)
        assert np.array_equal(levels(stock.image_processor, image), pixels)
        assert np.array_equal(levels(open_model_folder(model).processor.image_processor, image), pixels)
    folder.processor.save_pretrained(tmp_path / "whole")  # as transformers writes all of it
    assert new == json.loads((tmp_path / "whole" / "processor_config.json").read_text())

"""Makes image processors pad to a square as LLaVA-1.5 does, or not, as a recipe's `data.image_aspect_ratio` says.

LLaVA-1.5 puts an image into the middle of a square of its longer side in the processor's mean colour, and gives that
square to the tower's own processor. transformers' LlavaImageProcessor does both, with any tower's settings.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import LlavaImageProcessor, LlavaImageProcessorPil

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.json_files import read_json
from trainer.recipes.recipe import AspectRatio

_SETTINGS = ("size", "resample", "crop_size", "rescale_factor", "image_mean", "image_std")
_SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
"""Switches that are on by default in LLaVA's processor, and off in a processor that lacks them."""
_SIZES = ((61, 40), (40, 61))
"""The sizes of the images that two processors are compared on, (width, height) in pixels."""


def with_aspect_ratio(image_processor: Any, ratio: AspectRatio | None, where: Path) -> Any:  # noqa: ANN401
    """Return an image processor that pads, or does not, as a stage says.

    It is the same object if it does so already.

    Args:
        image_processor: of a model folder.
        ratio: None leaves the processor as it is; `square` takes the padding away.
        where: the folder, for an error.

    Raises:
        UserError: LLaVA's processor cannot do after padding what this one does.
    """
    if ratio is None or pads(image_processor) == (ratio == "pad"):
        return image_processor
    given = image_processor.to_dict()
    settings: dict[str, Any] = {name: given[name] for name in _SETTINGS if given.get(name) is not None}
    settings |= {name: bool(given.get(name)) for name in _SWITCHES}
    if not settings["do_center_crop"]:  # LLaVA's own default in the file would puzzle readers
        settings["crop_size"] = settings.get("size")
    kind = LlavaImageProcessorPil if getattr(image_processor, "backend", "") == "pil" else LlavaImageProcessor
    try:
        made = kind(**settings, do_pad=ratio == "pad")
        same = ratio == "square" or all(_same(made, image_processor, size) for size in _SIZES)
    except (TypeError, ValueError, KeyError, RuntimeError):
        same = False
    if not same:
        raise UserError(
            f"image_aspect_ratio: {ratio}: {where}: its image processor, {type(image_processor).__name__}, does more "
            "than resize, crop and normalise RGB, and LLaVA's could not do the same behind bars; leave "
            "image_aspect_ratio out, or take a tower with an image processor as CLIP's, SigLIP's or DINOv2's"
        )
    return made


def padded(image: Image.Image, image_processor: Any) -> Image.Image:  # noqa: ANN401 - any image processor
    """Pad an image to the square that LLaVA gives to a processor.

    The image is in the middle, with the processor's mean colour around it.

    Raises:
        ValueError: the mean is not a colour.
    """
    colour = tuple(int(mean * 255) for mean in image_processor.image_mean)
    if not all(0 <= level <= 255 for level in colour):
        raise ValueError(f"the mean is no colour: {image_processor.image_mean}")
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _same(made: Any, before: Any, size: tuple[int, int]) -> bool:  # noqa: ANN401 - image processors
    """Check whether a processor that pads gives what the one before gives for the padded image."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    ours, theirs = (
        np.asarray(processor(shown, return_tensors="np")["pixel_values"])
        for processor, shown in ((made, image), (before, padded(image, made)))
    )
    return ours.shape == theirs.shape and bool(np.allclose(ours, theirs, atol=1e-4))


def write_image_processor(image_processor: Any, folder: Path) -> None:  # noqa: ANN401 - any image processor
    """Write an image processor over a model folder's own.

    It goes into those of transformers' files that hold one; the rest of the files stays.
    """
    said = json.loads(image_processor.to_json_string())
    processor = folder / "processor_config.json"
    stated = read_json(processor, absent={})
    if "image_processor" in stated:
        _write(processor, stated | {"image_processor": said})
    alone = folder / "preprocessor_config.json"  # transformers 4 reads this file only
    if alone.is_file():
        kept = {name: value for name, value in read_json(alone).items() if name == "processor_class"}
        _write(alone, said | kept)


def _write(file: Path, content: dict[str, Any]) -> None:
    mode = file.stat().st_mode
    file.unlink()  # a copy of a read-only file is read-only, too
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
    file.chmod(mode)


def pads(image_processor: Any) -> bool:  # noqa: ANN401 - any image processor
    """Tell whether an image processor first puts an image into the middle of a square, as LLaVA's does.

    Others have a `do_pad`, too, which adds rows and columns after the crop. A square of one size needs none.
    """
    return bool(getattr(image_processor, "do_pad", False)) and hasattr(image_processor, "pad_to_square")

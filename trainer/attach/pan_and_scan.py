"""Locate Gemma 3's visual tokens, with pan and scan or without."""

import math
from collections.abc import Sequence

import torch

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import WHOLE, CropBox, patch_reach
from trainer.attach.tiles import Call, ImageTokens, Size, known_size, views
from trainer.data.geometry import image_setting


def scanned(call: Call, sizes: Sequence[Size | None]) -> list[ImageTokens]:
    """Lay out the whole image squeezed to a square, then the crops of pan and scan if it is on, for Gemma 3."""
    side, tower = math.isqrt(call.inner.config.mm_tokens_per_image), call.inner.config.vision_config
    pooled = tower.image_size // tower.patch_size // side * tower.patch_size
    reach = patch_reach((side, side), (pooled, pooled), (tower.image_size, tower.image_size))
    uncut = (None in sizes or unscanned(call) is not None) and call.total == len(sizes) * side * side
    if uncut:
        return [views((side, side), [WHOLE], reach) for _ in sizes]
    laid = [views((side, side), [WHOLE, *_scans(call, known_size(call, size))], reach) for size in sizes]
    if (tokens := sum(one.tokens for one in laid)) != call.total:
        raise UserError(
            f"{call.family}: expected {tokens} visual tokens of {len(sizes)} images; found {call.total}; give the "
            "images upright and whole, and all their ids in the order of the batch; if you use pan and scan, set it in "
            "processor.images_kwargs and not per call"
        )
    return laid


def _scans(call: Call, size: Size) -> list[CropBox]:
    """Compute the crops that Gemma 3's processor cuts.

    The processor's own function is run on an image of column numbers and one of row numbers, so that the crops hold
    their bounds.
    """
    processor, (width, height) = call.processor.image_processor, size
    names = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")
    chosen = {name: image_setting(call.processor, name) for name in (f"pan_and_scan_{name}" for name in names)}
    # The processor that reads with Pillow has one function, the other one has another; both cut the last two sides.
    cut = getattr(processor, "pan_and_scan_batched", None) or processor.pan_and_scan
    columns = cut(torch.arange(width).expand(1, height, width), **chosen)
    rows = cut(torch.arange(height)[None, :, None].expand(1, height, width), **chosen)
    return [
        (int(x.min()) / width, int(y.min()) / height, (int(x.max()) + 1) / width, (int(y.max()) + 1) / height)
        for x, y in zip(columns, rows, strict=True)
    ]


def unscanned(call: Call) -> int | None:
    """Count Gemma 3's images, which are all views; None if pan and scan is on in the processor's settings."""
    return None if image_setting(call.processor, "do_pan_and_scan") else len(call.given["pixel_values"])

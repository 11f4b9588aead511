"""Encode arrays and small photos as base64, which becomes part of the report's file.

A browser reads the arrays as typed arrays.
"""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import CropBox
from sea_pipeline.inputs.pixels import BadImageError


def packed(values: npt.ArrayLike, kind: str) -> dict[str, str]:
    """Encode an array, row-major, as `{"type": kind, "data": base64}`.

    `core.js: unpack` is the inverse.

    Args:
        values: numbers that fit `kind`.
        kind: u8, u16, u32 or f32.
    """
    dtype = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}[kind]
    array: npt.NDArray[Any] = np.ascontiguousarray(np.asarray(values).astype(dtype))
    return {"type": kind, "data": base64.b64encode(array.tobytes()).decode()}


def narrow(count: int) -> str:
    """Choose the kind for whole numbers below `count`."""
    return "u16" if count <= 1 << 16 else "u32"


BUDGET = 20_000
"""The largest size of a photo as base64, in bytes."""
_QUALITIES = (72, 55, 40, 25)


def thumbnail(read: Callable[[], Image.Image], box: CropBox, longest: int) -> str | None:
    """Encode the part of a photo that a grid covers as a data URI of WebP, or return None.

    None means that the photo is gone or damaged.

    Args:
        read: returns the upright image, or raises `BadImageError`, `OSError` or `UserError`.
        box: x0, y0, x1, y1 as shares of the image; what is beyond its edges is black.
        longest: the largest length of the longer side, in pixels. It is shorter if the photo is smaller or takes more
            than `BUDGET` bytes.
    """
    try:
        image = read().convert("RGB")
    except (BadImageError, OSError, UserError):
        return None
    part = covered(image, box)
    part.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    while True:
        for quality in _QUALITIES:
            encoded = _encoded(part, quality)
            if len(encoded) <= BUDGET:
                return f"data:image/webp;base64,{encoded}"
        part.thumbnail((max(1, part.width * 3 // 4), max(1, part.height * 3 // 4)), Image.Resampling.LANCZOS)


def covered(image: Image.Image, box: CropBox) -> Image.Image:
    """Cut out the part of an image that a grid covers, which is at least a pixel; what is beyond its edges is black."""
    sides = (image.width, image.height) * 2
    left, top, right, bottom = (round(edge * side) for edge, side in zip(box, sides, strict=True))
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _encoded(image: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=3)
    return base64.b64encode(file.getvalue()).decode()

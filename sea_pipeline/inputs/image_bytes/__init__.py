"""Separate a file's pixels from its metadata: damage to pixels is an error, damage to metadata is ignored."""

import struct

from sea_pipeline.inputs.image_bytes.base import DamagedError
from sea_pipeline.inputs.image_bytes.jpeg import JPEG, check_jpeg, jpeg_pixels, padded_jpeg
from sea_pipeline.inputs.image_bytes.png import PNG, png_pixels
from sea_pipeline.inputs.image_bytes.tiff import is_tiff, tiff_pixels
from sea_pipeline.inputs.image_bytes.webp import is_webp, webp_pixels

__all__ = ["JPEG", "PNG", "DamagedError", "check_jpeg", "padded_jpeg", "png_pixels", "without_metadata"]


def without_metadata(data: bytes) -> bytes | None:
    """Return the same picture with only the metadata that it needs to be shown, or None if nothing can be left out."""
    try:
        if data.startswith(JPEG[:2]):
            rest = jpeg_pixels(data)
        elif is_webp(data):
            rest = webp_pixels(data)
        elif is_tiff(data):
            rest = tiff_pixels(data)
        else:
            return None
    except (struct.error, IndexError):
        return None
    return None if rest == data else rest

"""From a file or its bytes to an upright 8-bit RGB image, or the reason why not."""

import errno
import hashlib
import io
import stat
import threading
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sea_pipeline.errors import one_line

DECODE_VERSION = 1
"""Part of every fingerprint; raise it when the same file would give other pixels."""


MAX_FILE_BYTES = 1 << 29

_FORMATS = ["AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"]
"""Not all that Pillow opens: it would hand PostScript to another program."""
PASSING = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN}
"""`errno` of faults of the machine or the network."""
_LARGE = 32_000_000
_one_large_image = threading.Lock()
"""Images of more than `_LARGE` pixels are decoded one at a time, or the threads would need gigabytes."""


@dataclass
class BadImageError(Exception):
    """Why one image cannot be used. `stage` is where it failed: read, decode, encode."""

    stage: str
    error: str
    message: str
    sha256: bytes | None = None


class DecodedImage(NamedTuple):
    """An upright RGB image and the sha256 of the file's bytes."""

    image: Image.Image
    sha256: bytes


def read_image(path: Path) -> DecodedImage:
    """Reads a file and decodes it; raises what `read_file` and `decode_image` raise."""
    return decode_image(read_file(path))


def read_file(path: Path, start: int = 0, length: int | None = None) -> bytes:
    """A file's bytes, or `length` of them from `start` on; fewer where it ends.

    Raises:
        BadImageError: the file cannot be read, or what is asked for is larger than `MAX_FILE_BYTES`.
        OSError: the machine or the network is at fault, not the file; it may pass.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("read", "NotAFile", "expected a file; found a folder or a device")
        if (size := status.st_size if length is None else length) > MAX_FILE_BYTES:
            raise BadImageError("read", "TooLarge", f"expected at most {MAX_FILE_BYTES:,} bytes, found {size:,}")
        if length is None:
            return path.read_bytes()
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)
    except OSError as error:
        if error.errno in PASSING:
            raise
        raise BadImageError("read", type(error).__name__, error.strerror or str(error)) from error


def decode_image(data: bytes) -> DecodedImage:
    """The first frame of a file's bytes, turned as its EXIF data says, alpha over white, 16 bits scaled to 8, RGB.

    Raises:
        BadImageError: there are no bytes, they are no image, are damaged, or are more than Pillow's limit against
            decompression bombs allows.
    """
    sha256 = hashlib.sha256(data).digest()
    if not data:
        raise BadImageError("read", "EmptyFile", "the file holds 0 bytes", sha256)
    try:
        return DecodedImage(_decode(data), sha256)
    except BadImageError as error:
        error.sha256 = sha256
        raise
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        raise BadImageError("decode", type(error).__name__, _reason(error), sha256) from error


def _decode(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        # Odd metadata and images between one and two times Pillow's limit; past two times it raises.
        warnings.simplefilter("ignore")
        Image.init()  # else Pillow knows its five commonest formats only
        with Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN]) as opened:
            large = opened.width * opened.height > _LARGE
            with _one_large_image if large else nullcontext():
                opened.load()
                return _rgb(_upright(opened))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data says nothing about the pixels
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # convert() would clip 16 bits at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65_535:
            raise BadImageError("decode", "PixelRange", "expected 8 or 16 bits a channel; found wider values")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImageError("decode", "PixelRange", "expected 8 or 16 bits a channel; found floating point")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "expected an image; the bytes are of no format that Pillow knows"
    return one_line(error)

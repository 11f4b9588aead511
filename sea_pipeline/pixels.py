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
from PIL import ExifTags, Image, UnidentifiedImageError

from sea_pipeline.core.errors import one_line
from sea_pipeline.image_bytes import JPEG, PNG, DamagedError, check_jpeg, padded_jpeg, png_pixels, without_metadata
from sea_pipeline.magics import known_kind

DECODE_VERSION = 2
"""Part of every fingerprint; raise it when the same file would give other pixels."""


MAX_FILE_BYTES = 1 << 29

_FORMATS = ["AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"]
"""Not all that Pillow opens: it would hand PostScript to another program."""
_WEAK_MAGIC = ("DIB", "TGA")
PASSING = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN}
"""`errno` of faults of the machine or the network."""
_LARGE = 32_000_000
_one_large_image = threading.Lock()
"""Images of more than `_LARGE` pixels are decoded one at a time, or the threads would need gigabytes."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by EXIF's orientation."""
_SAYS_HOW_TURNED = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Left out of a turned picture's `info`, or a library that turns pictures itself would turn it again."""


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
    """The first frame of a file's bytes, turned as its EXIF data says, alpha over white, RGB.

    Grey of more than 8 bits is scaled by what it holds: a greatest value of at most 255 is read as 8 bits, of at most
    65,535 as 16; floating point of at most 1.0 as shares of white; anything greater by that greatest value.
    Damaged metadata is left out, with the orientation if it cannot be read.

    Raises:
        BadImageError: there are no bytes, they are no image, are damaged, or are more than Pillow's limit against
            decompression bombs allows.
    """
    sha256 = hashlib.sha256(data).digest()
    if not data:
        raise BadImageError("read", "EmptyFile", "the file holds 0 bytes; copy it again", sha256)
    try:
        return DecodedImage(_decode(data), sha256)
    except BadImageError as error:
        error.sha256 = sha256
        raise
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        raise BadImageError("decode", type(error).__name__, _reason(error, data), sha256) from error


def _decode(data: bytes) -> Image.Image:
    if data.startswith(PNG):
        return _open(png_pixels(data))
    try:
        image = _open(data)
    except (BadImageError, Image.DecompressionBombError):
        raise
    except Exception:
        if (rest := without_metadata(data)) is None:
            raise
        data = rest
        image = _open(data)
    if data.startswith(JPEG):
        end = check_jpeg(data)
        if end and _may_be_filled(image) and image.tobytes() != _open(padded_jpeg(data, end)).tobytes():
            raise DamagedError("the JPEG's end is missing: its decoder filled the rest with grey; copy the file again")
    return image


def _may_be_filled(image: Image.Image) -> bool:
    """Whether a corner has the grey with which JPEG's decoder fills what is missing."""
    right, low = image.width - 1, image.height - 1
    return any(image.getpixel(corner) == (128, 128, 128) for corner in ((right, low), (0, 0), (right, 0), (0, low)))


def _open(data: bytes) -> Image.Image:
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
    # Not Pillow's exif_transpose: it writes all EXIF data anew and so fails by tags that nobody needs.
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data says nothing about the pixels
        turn = None
    if turn is None:
        return image
    upright = image.transpose(turn)
    for key in _SAYS_HOW_TURNED:
        upright.info.pop(key, None)
    return upright


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.copy() if getattr(image, "is_animated", False) else image  # an animation may load again
    if image.mode == "F" or image.mode.startswith("I"):  # convert() would clip at 255
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey of any depth in 8 bits, by the rule in `decode_image`."""
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadImageError(
            "decode", "PixelRange", "expected finite grey values; found NaN or infinity; save it as 8 bits"
        )
    if low < 0:
        message = f"expected grey values from 0 on; found {low:g}; save it as 8 or 16 bits"
        raise BadImageError("decode", "PixelRange", message)
    if values.dtype.kind == "f" and high <= 1:
        top = 1.0
    elif high <= 255:
        top = 255.0
    elif high <= 65_535:
        if values.dtype.kind != "f":
            return (values // 257).astype(np.uint8)
        top = 65_535.0
    else:
        top = float(high)
    return np.rint(values * (255 / top)).astype(np.uint8)


def _reason(error: Exception, data: bytes) -> str:
    if not isinstance(error, DamagedError) and (kind := known_kind(data)):
        return kind
    if isinstance(error, UnidentifiedImageError):
        for name in _FORMATS:
            if name not in _WEAK_MAGIC and name in Image.OPEN and (accept := Image.OPEN[name][1]) and accept(data[:16]):
                return f"the file begins as {name} does, but is damaged or cut off; copy it again"
        return "expected an image; the bytes are of no format that Pillow knows"
    return one_line(error)

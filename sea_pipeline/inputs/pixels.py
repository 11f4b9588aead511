"""Read a file or its bytes as an upright 8-bit RGB image, or say why not and what the file is instead."""

import errno
import hashlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError, features

from sea_pipeline.core.errors import one_line
from sea_pipeline.inputs.image_bytes import (
    JPEG,
    PNG,
    DamagedError,
    check_jpeg,
    padded_jpeg,
    png_pixels,
    without_metadata,
)

DECODE_VERSION = 4
"""Part of every fingerprint; raise it when the same file would give other pixels."""


MAX_FILE_BYTES = 1 << 29

_FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
)
"""Fewer formats than Pillow opens, because it would hand PostScript to another program."""
_WEAK_MAGIC = ("DIB", "PCX", "TGA")
PASSING = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN}
"""Values of `errno` for faults of the machine or the network."""
OF_ONE_FILE = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
"""Those of them that may concern one file for ever; too little memory never does."""
_PNG_DEPTH = 24
"""The byte of a PNG that says how many bits a sample has."""
_UNSIGNED, _WHITE_IS_ZERO = (1,), 0
"""Values of TIFF's tags of the sample format and the photometric interpretation."""
_SIXTEEN_BITS = 65_535
_WHITES = {
    "f": (1, 255, _SIXTEEN_BITS),
    **dict.fromkeys("iu", (255, 1023, 4095, 16_383, _SIXTEEN_BITS)),
}
"""What white may be, by numpy's kind of number."""
_LARGE = 32_000_000
_one_large_image = threading.Lock()
"""Lets one image of more than `_LARGE` pixels be decoded at a time, because several would need gigabytes."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes a picture upright, by EXIF's orientation."""
_SIDEWAYS = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]
_SIDES = (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength)
_SAYS_HOW_TURNED = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Removed from a turned picture's `info`, because a library that turns pictures itself would turn it again."""


@dataclass
class BadImageError(Exception):
    """The reason why one image cannot be used. `stage` is the step that failed: read, decode, encode."""

    stage: str
    error: str
    message: str
    sha256: bytes | None = None


class DecodedImage(NamedTuple):
    """An upright RGB image and the sha256 of the file's bytes."""

    image: Image.Image
    sha256: bytes


def read_image(path: Path) -> DecodedImage:
    """Read a file and decode it.

    Raises what `read_file` and `decode_image` raise.
    """
    return decode_image(read_file(path))


def read_file(path: Path, start: int = 0, length: int | None = None) -> bytes:
    """Read a file's bytes, or `length` of them from `start` on, or fewer if it ends before.

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
    """Decode the first frame of a file's bytes to RGB, upright by its EXIF data, with alpha over white.

    White is the least of 2^8 - 1, 2^10 - 1, 2^12 - 1, 2^14 - 1 and 2^16 - 1 that grey of more than 8 bits does not
    exceed. For floating-point grey it is the least of 1, 255 and 65,535 that 99 % of the pixels do not exceed, and the
    rest become white. Greater values are divided by the greatest one. Damaged metadata is ignored, including the
    orientation if it cannot be read.

    Raises:
        BadImageError: there are no bytes, they are no image, are damaged, or are more than Pillow's limit against
            decompression bombs allows.
        OSError: the machine has too little memory for it.
    """
    sha256 = hashlib.sha256(data).digest()
    if not data:
        raise BadImageError("read", "EmptyFile", "the file holds 0 bytes; copy it again", sha256)
    try:
        return DecodedImage(_decode(data), sha256)
    except BadImageError as error:
        error.sha256 = sha256
        raise
    except Exception as error:  # on damaged bytes Pillow's decoders raise any kind of exception
        if _lacks_memory(error):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
        raise BadImageError("decode", type(error).__name__, _reason(error, data), sha256) from error


def upright_size(path: Path) -> tuple[int, int]:
    """Read (width, height) of a file's upright image, from its header if that is enough.

    Raises what `read_image` raises, for a file whose header cannot be read.
    """
    try:
        with _opened(path) as opened:
            width, height = opened.size
            if isinstance(opened, TiffImagePlugin.TiffImageFile):  # newer Pillows say the size as it will be turned
                width, height = (opened.tag_v2[side] for side in _SIDES)
            if width == height:
                return width, height
            turn = _turn(opened)
    except Exception:  # the header is damaged, or there is no file: decoding says what it is
        return read_image(path).image.size
    return (height, width) if turn in _SIDEWAYS else (width, height)


def _decode(data: bytes) -> Image.Image:
    if data.startswith(PNG):
        return _open(png_pixels(data))
    try:
        image = _open(data)
    except (BadImageError, Image.DecompressionBombError):
        raise
    except Exception as error:
        if _lacks_memory(error) or (rest := without_metadata(data)) is None:
            raise
        data = rest
        image = _open(data)
    if data.startswith(JPEG):
        end = check_jpeg(data)
        # If more data before the end marker changes the pixels, the picture's own data ended too early.
        if end and _may_be_filled(image) and image.tobytes() != _open(padded_jpeg(data, end)).tobytes():
            raise DamagedError("the JPEG's end is missing: its decoder filled the rest with grey; copy the file again")
    return image


def _lacks_memory(error: Exception) -> bool:
    """Tell whether the machine had too little memory, which says nothing about the image."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def _may_be_filled(image: Image.Image) -> bool:
    """Tell whether a corner has the grey with which JPEG's decoder fills missing pixels."""
    right, low = image.width - 1, image.height - 1
    return any(image.getpixel(corner) == (128, 128, 128) for corner in ((right, low), (0, 0), (right, 0), (0, low)))


@contextmanager
def _opened(file: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image of a format that is read here, without decoding it."""
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, and of images over its limit of pixels; over twice the limit it raises.
        warnings.simplefilter("ignore")
        Image.init()  # without it Pillow knows only its five commonest formats
        with Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN]) as opened:
            yield opened


def _open(data: bytes) -> Image.Image:
    with _opened(io.BytesIO(data)) as opened:
        large = opened.width * opened.height > _LARGE
        with _one_large_image if large else nullcontext():
            opened.load()
            if data.startswith(PNG) and "transparency" in opened.info:
                opened.info["transparency"] = _hidden(opened.info["transparency"], opened.mode, data[_PNG_DEPTH])
            upright = _upright(opened)
            if opened.mode == "F" or opened.mode.startswith("I"):  # Pillow's convert() would clip at 255
                return _deep_grey(upright, getattr(opened, "tag_v2", {}))
            return _rgb(upright)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data says nothing about the pixels
        return None


def _upright(image: Image.Image) -> Image.Image:
    # Not Pillow's exif_transpose, because it writes all EXIF data anew and so fails at tags that nobody needs.
    turn = _turn(image)
    if turn is None:
        return image
    upright = image.transpose(turn)
    for key in _SAYS_HOW_TURNED:
        upright.info.pop(key, None)
    return upright


def _hidden(value: Any, mode: str, depth: int) -> Any:  # noqa: ANN401 - a colour, or alpha by palette entry
    """Return a PNG's hidden colour as Pillow reads pixels: grey of 2 and 4 bits scaled, RGB of 16 bits cut to 8."""
    if mode == "RGB" and depth == 16:
        return tuple(channel >> 8 for channel in value)
    return value * (255 // ((1 << depth) - 1)) if mode == "L" and depth < 8 else value


def _rgb(image: Image.Image) -> Image.Image:
    # The picture in an ICNS has no palette of its own, for which Pillow's property looks.
    if (image.mode != "P" or image.palette) and image.has_transparency_data:
        layers = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    if image.mode == "RGB":
        return image.copy() if getattr(image, "is_animated", False) else image  # an animation may load another frame
    return image.convert("RGB")


def _deep_grey(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Scale grey of more than 8 bits; `tags` are a TIFF's, which Pillow reads as signed and as no negative."""
    values = np.asarray(image)
    if values.dtype == np.int32 and tags.get(TiffImagePlugin.SAMPLEFORMAT, _UNSIGNED) == _UNSIGNED:
        values = values.view(np.uint32)
    hidden = values == image.info.get("transparency")
    grey = _eight_bits(np.where(hidden, 0, values))
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        grey = 255 - grey
    return Image.fromarray(np.where(hidden, np.uint8(255), grey)).convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale grey of any depth to 8 bits, by the rule in `decode_image`."""
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadImageError(
            "decode", "PixelRange", "expected finite grey values; found NaN or infinity; save it as 8 bits"
        )
    if low < 0:
        message = f"expected grey values from 0 on; found {low:g}; save it as 8 or 16 bits"
        raise BadImageError("decode", "PixelRange", message)
    # A filter that sharpens leaves a few floats above white; integers have no room for that.
    most = np.quantile(values, 0.99) if values.dtype.kind == "f" else high
    top = next((white for white in _WHITES[values.dtype.kind] if most <= white), high)
    if top == _SIXTEEN_BITS and values.dtype.kind != "f":
        return np.asarray(values // 257, np.uint8)  # 65,535 / 255 = 257
    return np.asarray(np.rint(np.minimum(values, top) * (255 / float(top))), np.uint8)


def _reason(error: Exception, data: bytes) -> str:
    if not isinstance(error, DamagedError) and (kind := known_kind(data)):
        return kind
    if isinstance(error, UnidentifiedImageError):
        if name := begun_format(data):
            return (
                f"the file begins as {name} does, but Pillow cannot read it: it is damaged, cut off, or of a kind that "
                "Pillow lacks, such as lossless JPEG; copy it again, or convert it to an 8-bit PNG"
            )
        return f"expected an image; the bytes are of no format that is read here; {_CONVERT}"
    return one_line(error)


def begun_format(data: bytes) -> str | None:
    """Name the format whose files begin as these bytes do, or None if no format here does."""
    Image.init()
    head = data[:16].ljust(16, b"\0")
    for name in _FORMATS:
        if name not in _WEAK_MAGIC and name in Image.OPEN and (accept := Image.OPEN[name][1]) and accept(head):
            return name
    return None


_CONVERT = "convert it to JPEG or PNG"
_KINDS: list[tuple[bytes, str]] = [
    (rb"version https://git-lfs\.github\.com/spec", "a git-lfs pointer; fetch the image itself with `git lfs pull`"),
    (rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", f"a HEIC picture, which Pillow cannot decode here; {_CONVERT}"),
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", f"a JPEG XL picture, which Pillow cannot decode; {_CONVERT}"),
    (rb"....ftyp(?:crx|cr3)", f"a camera's raw picture; {_CONVERT}"),
    (rb"....(?:ftyp|moov|mdat)", "an MP4 or QuickTime video; take pictures out of it, or leave it out"),
    (rb"\x1a\x45\xdf\xa3", "a Matroska or WebM video; take pictures out of it, or leave it out"),
    (rb"RIFF....AVI ", "an AVI video; take pictures out of it, or leave it out"),
    (rb"OggS|FLV\x01|\0\0\x01[\xba\xb3]", "a video; take pictures out of it, or leave it out"),
    (rb"RIFF....WAVE|ID3|fLaC", "a sound; leave it out"),
    (rb"\s*%PDF-", "a PDF document; export its pictures as JPEG or PNG"),
    (
        rb"\s*(?:<\?xml[^>]*>\s*)?(?:(?><!--.*?-->|<!DOCTYPE svg.*?>)\s*)*+<svg[\s>:]",
        "an SVG drawing; render it as PNG",
    ),
    (
        rb"\s*(?:<\?xml[^>]*>\s*)?(?:(?><!--.*?-->)\s*)*+<(?:!doctype\s+)?html",
        "an HTML page, such as an error page; download the image again",
    ),
    (rb"\s*<(?:head|body|title|script|h1|center)\b", "an HTML page, such as an error page; download the image again"),
    (rb"\s*<[?A-Za-z!]", "an XML document, such as a server's error message; download the image again"),
    (rb'\s*(?:\{\s*["}]|\[\s*[{"\]])', "JSON text, such as a server's error message; download the image again"),
    (rb"\x1f\x8b", "gzip data; decompress it: `gunzip < FILE > NEW && mv NEW FILE`"),
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a zip archive; extract it with `unzip`"),
    (rb"BZh[1-9]1AY&SY", "bzip2 data; decompress it: `bunzip2 < FILE > NEW && mv NEW FILE`"),
    (rb"\xfd7zXZ\0", "xz data; decompress it: `unxz < FILE > NEW && mv NEW FILE`"),
    (rb"\x28\xb5\x2f\xfd", "Zstandard data; decompress it: `unzstd < FILE > NEW && mv NEW FILE`"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive; extract it with `7z x`"),
    (rb"Rar!\x1a\x07", "a RAR archive; extract it with `unrar x`"),
    (rb".{257}ustar", "a tar archive; extract it with `tar -xf`"),
    (rb"\x93NUMPY", "a NumPy array; save it as PNG"),
    (rb"8BPS", f"a Photoshop document; {_CONVERT}"),
    (rb"\x89PNG(?!\r\n\x1a\n)", "a PNG whose line ends were changed; copy it again in binary mode"),
]
"""Byte patterns of a file's start, the most specific first, and what such a file is."""
_CODECS = {
    "avif": (rb"....ftyp(?:avi[fs]|mi[af]1.{4,60}?avif)", "an AVIF picture"),
    "webp": (rb"RIFF....WEBP", "a WebP picture"),
    "jpg_2000": (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "a JPEG 2000 picture"),
}
"""Pillow's names of codecs that it may be built without, and the files that need them."""
_PATTERNS = [
    (re.compile(rb"(?:\xef\xbb\xbf)?(?:" + pattern + rb")", re.DOTALL | re.IGNORECASE), said)
    for pattern, said in _KINDS
]
_LACKS = f"is built without its codec; install Pillow from PyPI, or {_CONVERT}"
_HEAD = 4096


def known_kind(data: bytes) -> str | None:
    """Describe in one line what the bytes are and what to do about it, or None if no kind here matches."""
    if data and data.count(0) == len(data):
        return f"expected an image; all {len(data):,} bytes are zeros: the file was never written; copy it again"
    head = data[:_HEAD]
    if head.startswith((b"\xff\xfe<\0", b"\xfe\xff\0<")):
        head = head.decode("utf-16", "ignore").encode()
    for codec, (pattern, name) in _CODECS.items():
        if re.match(pattern, head, re.DOTALL):
            return None if features.check(codec) else f"expected an image; this is {name}, and this Pillow {_LACKS}"
    return next((f"expected an image; this is {said}" for pattern, said in _PATTERNS if pattern.match(head)), None)

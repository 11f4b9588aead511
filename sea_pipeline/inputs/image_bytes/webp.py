"""Remove the metadata of a WebP."""

import re
import struct
from collections.abc import Iterator

_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_PROFILE, _EXIF, _XMP = 0b100000, 0b001000, 0b000100
"""Flags of the VP8X chunk."""
_CHUNK = re.compile(rb"VP8[ LX]|ALPH|ANIM|ANMF|ICCP|EXIF|XMP ")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, the start and the end of each chunk.

    A chunk of metadata with a wrong length is skipped, up to the next name of a chunk.
    """
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length
        is_followed = end + 1 >= len(data) or _CHUNK.match(data, end + length % 2)
        if name not in _PIXELS and (end > len(data) or not is_followed) and (found := _CHUNK.search(data, at + 8)):
            at = found.start()
            continue
        yield name, at, end
        at = end + length % 2


def webp_pixels(data: bytes) -> bytes:
    """Return the same WebP without its colour profile and XMP, and without EXIF that is cut off."""
    chunks = [(name, start, end) for name, start, end in _chunks(data) if name in _PIXELS or end <= len(data)]
    has_exif = any(name == b"EXIF" for name, _, _ in chunks)
    kept = b""
    for name, start, end in chunks:
        if name == b"VP8X":
            flags = data[start + 8] & ~(_PROFILE | _EXIF | _XMP) | (_EXIF if has_exif else 0)
            kept += data[start : start + 8] + bytes([flags]) + data[start + 9 : end]
        elif name in _PIXELS or name == b"EXIF":
            kept += data[start:end] + bytes((end - start) % 2)
    return b"RIFF" + struct.pack("<I", len(kept) + 4) + b"WEBP" + kept


def is_webp(data: bytes) -> bool:
    """Tell whether a file begins as a WebP does."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"

"""Remove the tags of a TIFF that its pixels do not need."""

import struct

_TAGS = {
    *range(254, 260),  # what kind of image, its size, its bits, its compression
    *(262, 266, 274, 277, 278, 279, 273, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347),
    *range(512, 522),  # the first form of JPEG in TIFF
    *(529, 530, 531, 532),
}
"""The tags that say how to read a TIFF's pixels, and how it is turned."""


def tiff_pixels(data: bytes) -> bytes:
    """Return the same TIFF with only the tags in `_TAGS`, and without a second picture."""
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[:4]
    count_form, step, offset_form = ("Q", 20, "Q") if big else ("H", 12, "I")
    at = struct.unpack_from(order + offset_form, data, 8 if big else 4)[0]
    count = struct.unpack_from(order + count_form, data, at)[0]
    start = at + struct.calcsize(count_form)
    entries = (data[start + i * step : start + (i + 1) * step] for i in range(min(count, len(data) // step)))
    kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in _TAGS]
    table = struct.pack(order + count_form, len(kept)) + b"".join(kept) + bytes(8 if big else 4)
    return data[:at] + table + data[at + len(table) :]


def is_tiff(data: bytes) -> bool:
    """Tell whether a file begins as a TIFF or a BigTIFF does."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

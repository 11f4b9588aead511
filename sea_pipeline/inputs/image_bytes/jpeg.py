"""Remove a JPEG's metadata, and find the damage that its decoder ignores in silence."""

import re
import struct
from collections.abc import Iterator

from sea_pipeline.inputs.image_bytes.base import DamagedError

JPEG = b"\xff\xd8\xff"
_ZEROS = 64
_SEARCHED = 1 << 20
_HEAD = re.compile(rb"\xff[\xc0-\xc2\xc4\xdb\xdd\xe0-\xef]")
_HEADS = (0xC0, 0xC1, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)
"""Markers of the segments before a JPEG's first scan."""
_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")


def _segments(data: bytes, at: int = 2) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, the start and the end of each segment.

    It ends with the segment of the first scan, or before bytes that are no segment.
    """
    while at + 4 <= len(data) and data[at] == 0xFF:
        if (marker := data[at + 1]) == 0xFF:  # a fill byte before the marker
            at += 1
            continue
        if marker not in _HEADS:
            return
        end = at + 2 + int(struct.unpack_from(">H", data, at + 2)[0])
        yield marker, at, end
        if marker == 0xDA:
            return
        at = end


def jpeg_pixels(data: bytes) -> bytes:
    """Return the same JPEG without metadata, except what says how it is turned and what its colours mean."""
    kept = [data[:2]]
    marker = at = end = 2
    while marker != 0xDA:
        for marker, start, end in _segments(data, at):
            if _is_needed(marker, data[start + 4 : end], data[end : end + 1] == b"\xff"):
                kept.append(data[start:end])
            at = start
        if marker != 0xDA:  # the length of the last segment or the marker of the next one is damaged
            at = _tables(data, at + 2)
    return b"".join((*kept, data[end:]))


def _is_needed(marker: int, text: bytes, is_followed: bool) -> bool:
    """Tell whether a segment is a table or a frame, or says how the picture is turned or what its colours mean."""
    if 0xC0 <= marker <= 0xC2:  # one wrong bit turns a marker of metadata into these, so the length must match
        return len(text) > 5 and len(text) == 6 + 3 * text[5]
    if marker != 0xFE and not 0xE0 <= marker <= 0xEF:
        return True
    return is_followed and (
        (marker == 0xE0 and text.startswith(b"JFIF\0") and len(text) >= 14)
        or (marker == 0xEE and text.startswith(b"Adobe") and len(text) >= 12)
        or (marker == 0xE1 and text.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")))
    )


def _tables(data: bytes, at: int) -> int:
    """Find the segments of the largest picture after `at`, because those of a thumbnail may come before them."""
    best, where = 0, -1
    for found in _HEAD.finditer(data, at, at + _SEARCHED):
        starts = {marker: start for marker, start, _ in _segments(data, found.start())}
        frame = next((starts[marker] for marker in (0xC0, 0xC1, 0xC2) if marker in starts), None)
        if frame is not None and {0xDA, 0xDB} <= starts.keys():
            height, width = struct.unpack_from(">HH", data, frame + 5)
            if height * width > best:
                best, where = height * width, found.start()
    if where < 0:
        raise IndexError
    return where


def check_jpeg(data: bytes) -> int | None:
    """Look for damage that the decoder ignores in silence.

    JPEG has no checksum. So changed bits that still decode are not found, nor a progressive JPEG that ends early with
    an end marker.

    Returns:
        The position of the picture's end marker, or None if it has none.

    Raises:
        DamagedError: a scan holds what no scan can, lacks a part between its restart markers, or its end is zeros.
    """
    scan = start = frame = interval = 0
    for marker, start, end in _segments(data):
        if marker == 0xDD:
            interval = int.from_bytes(data[start + 4 : start + 6])
        elif marker in (0xC0, 0xC1):
            frame = start + 4
        elif marker == 0xDA:
            scan = end
    if not scan:  # the decoder has read odd segments that `_segments` does not understand
        return None
    first, at = None, scan
    while (found := _MARKER.search(data, at)) and (marker := data[found.end() - 1]) != 0xD9:
        # Allowed between two scans are tables, comments, the number of lines and the next scan.
        if marker not in (0xC4, *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE):
            said = f"the JPEG's scan holds {found[0].hex()} at byte {found.start():,}, which no scan can; copy it again"
            raise DamagedError(said)
        first = first or found.start()
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    if not found and data.endswith(bytes(_ZEROS)):
        raise DamagedError("the JPEG's end is zeros and has no end marker; copy the file again")
    if interval and frame:
        end = first or (found.start() if found else len(data))
        _check_restarts(data[scan:end], data[frame:], interval, data[start + 4])
    return found.start() if found else None


def padded_jpeg(data: bytes, end: int) -> bytes:
    """Return the same JPEG with more data before its end marker.

    The added data changes its pixels only if its own data ends early.
    """
    return data[:end] + b"\x55" * 256 + data[end:]


def _check_restarts(scan: bytes, frame: bytes, interval: int, components: int) -> None:
    """Count the restart markers of a scan that holds all components of a sequential JPEG.

    Raises:
        DamagedError: some are missing or out of order.
    """
    height, width, layers = struct.unpack_from(">HHB", frame, 1)
    if components != layers or not height:
        return
    factors = [frame[7 + 3 * i] for i in range(layers)] if layers > 1 else [0x11]
    # A restart interval counts MCUs. An MCU has 8 pixels times the largest sampling factor, each way.
    across, down = 8 * max(f >> 4 for f in factors), 8 * max(f & 15 for f in factors)
    blocks = -(-width // across) * -(-height // down)
    expected = -(-blocks // interval) - 1
    found = [mark[1] & 7 for mark in re.findall(rb"\xff[\xd0-\xd7]", scan)]
    if found[:expected] != [i % 8 for i in range(expected)]:
        raise DamagedError(f"the JPEG holds {len(found)} of {expected} restart markers in order; copy the file again")

"""A JPEG's segments without metadata, and the damage that its decoder passes over in silence."""

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
    """Marker, start and end of each segment, up to the first scan's or to what is no segment."""
    while at + 4 <= len(data) and data[at] == 0xFF:
        if (marker := data[at + 1]) == 0xFF:  # a filling byte
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
    """The same JPEG with what turns it and says its colours, but no other metadata."""
    kept = [data[:2]]
    marker = at = end = 2
    while marker != 0xDA:
        for marker, start, end in _segments(data, at):
            if _is_needed(marker, data[start + 4 : end], data[end : end + 1] == b"\xff"):
                kept.append(data[start:end])
            at = start
        if marker != 0xDA:  # the last segment's length is wrong, or the next one's marker
            at = _tables(data, at + 2)
    return b"".join((*kept, data[end:]))


def _is_needed(marker: int, text: bytes, is_followed: bool) -> bool:
    """Whether a segment is a table or a frame, or says how the picture is turned or what its colours mean."""
    if 0xC0 <= marker <= 0xC2:  # one bit away from the markers of metadata
        return len(text) > 5 and len(text) == 6 + 3 * text[5]
    if marker != 0xFE and not 0xE0 <= marker <= 0xEF:
        return True
    return is_followed and (
        (marker == 0xE0 and text.startswith(b"JFIF\0") and len(text) >= 14)
        or (marker == 0xEE and text.startswith(b"Adobe") and len(text) >= 12)
        or (marker == 0xE1 and text.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")))
    )


def _tables(data: bytes, at: int) -> int:
    """Where the segments of the largest picture after `at` begin: a thumbnail's may come before them."""
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
    """Looks for damage that the decoder passes over in silence.

    JPEG has no checksum: changed bits that still decode are not found, nor a progressive JPEG that ends early with an
    end marker.

    Returns:
        Where the picture's end marker is, if it has one.

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
    if not scan:  # odd segments that the decoder found its way through
        return None
    first, at = None, scan
    while (found := _MARKER.search(data, at)) and (marker := data[found.end() - 1]) != 0xD9:
        # Between two scans: tables, comments, the number of lines, the next scan.
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
    """The same JPEG with more data before its end marker, which its pixels need only if they end early."""
    return data[:end] + b"\x55" * 256 + data[end:]


def _check_restarts(scan: bytes, frame: bytes, interval: int, components: int) -> None:
    """Counts the restart markers of a scan that holds all components of a sequential JPEG."""
    height, width, layers = struct.unpack_from(">HHB", frame, 1)
    if components != layers or not height:
        return
    factors = [frame[7 + 3 * i] for i in range(layers)] if layers > 1 else [0x11]
    across, down = 8 * max(f >> 4 for f in factors), 8 * max(f & 15 for f in factors)
    blocks = -(-width // across) * -(-height // down)
    expected = -(-blocks // interval) - 1
    found = [mark[1] & 7 for mark in re.findall(rb"\xff[\xd0-\xd7]", scan)]
    if found[:expected] != [i % 8 for i in range(expected)]:
        raise DamagedError(f"the JPEG holds {len(found)} of {expected} restart markers in order; copy the file again")

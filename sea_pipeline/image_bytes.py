"""Tells a file's pixels from its metadata: damage to the first is an error, damage to the second costs nothing."""

import re
import struct
import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
_TEXT_LIMIT = 1 << 20
"""Pillow refuses a PNG whose text is longer than this once decompressed."""
_BLOCK, _TAIL = 65_536, 256
"""What Pillow reads of a chunk at once, and how much of the pixels' end must come in one piece."""
_ZEROS = 64
_SECTOR = 512
_TURNED_BY = (b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Keywords of the texts in which Pillow looks for how a PNG is turned."""
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
_NEXT = re.compile(b"(?=" + b"|".join((*_PIXEL_CHUNKS, b"[a-z][A-Za-z][A-Z][A-Za-z]")) + b")")
"""Looks ahead, because a length's bytes may be letters, too."""
_TIFF_TAGS = {
    *range(254, 260),  # what kind of image, its size, its bits, its compression
    *(262, 266, 274, 277, 278, 279, 273, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347),
    *range(512, 522),  # the first form of JPEG in TIFF
    *(529, 530, 531, 532),
}
"""The tags that say how to read a TIFF's pixels, and which way is up."""


class DamagedError(ValueError):
    """A picture's own data is damaged; the message says what of it."""


def png_pixels(data: bytes) -> bytes:
    """Checks a PNG's chunks and leaves out those that say nothing about its pixels.

    Raises:
        DamagedError: a chunk that holds pixels, the palette or the transparency differs from its checksum, or the
            last one is missing.
    """
    kept: list[tuple[bytes, int, int]] = []
    view = memoryview(data)
    at = len(PNG)
    while True:
        end, name = _png_chunk(data, at)
        needed = name[:1].isupper() or name in _PIXEL_CHUNKS
        fits = end <= len(data)
        if fits and zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end]):
            if needed or name == b"eXIf" or _says_how_turned(name, data[at + 8 : end - 4]):
                kept.append((name, at, end))
        elif fits and (needed or _was_needed(data, at, end)):
            shown = repr(name)[2:-1]
            raise DamagedError(f"the PNG's {shown} chunk at byte {at:,} differs from its checksum; copy the file again")
        elif not fits or not _is_chunk(data, end):
            end = _next_chunk(data, at)
        if name == b"IEND":
            return _joined(view, kept)
        at = end


def _joined(data: memoryview, kept: list[tuple[bytes, int, int]]) -> bytes:
    """The chunks as a file whose last IDAT chunk holds its stream's checksum and pixels, too.

    Pillow stops as soon as it has all pixels, and would not see a checksum that it had to read separately.
    """
    chunks = [data[at:end] for _, at, end in kept]
    streams = [i for i, (name, _, _) in enumerate(kept) if name == b"IDAT"]
    if streams and (len(chunks[streams[-1]]) - 12) % _BLOCK < _TAIL:
        stream = b"".join(chunks[i][8:-4] for i in streams)
        parts = [part for part in (stream[:-_TAIL], stream[-_TAIL:]) if part]
        bodies = [b"IDAT" + part for part in parts]
        new = b"".join(struct.pack(">I", len(b) - 4) + b + struct.pack(">I", zlib.crc32(b)) for b in bodies)
        chunks[streams[0] : streams[-1] + 1] = [memoryview(new)]
    return b"".join((PNG, *chunks))


def _png_chunk(data: bytes, at: int) -> tuple[int, bytes]:
    if at + 12 > len(data):
        raise DamagedError(f"the PNG ends at byte {len(data):,}, before its IEND chunk; copy the file again")
    length, name = struct.unpack_from(">I4s", data, at)
    return at + 12 + length, name


def _is_chunk(data: bytes, at: int) -> bool:
    return at + 12 <= len(data) and data[at + 4 : at + 8].isalpha()


def _was_needed(data: bytes, at: int, end: int) -> bool:
    """Whether the checksum fits once the chunk bears the name of one that is needed."""
    expected = int.from_bytes(data[end - 4 : end])
    return any(zlib.crc32(data[at + 8 : end - 4], zlib.crc32(name)) == expected for name in _PIXEL_CHUNKS)


def _next_chunk(data: bytes, at: int) -> int:
    """Where the next sound chunk begins, after one at `at` whose length or name cannot be right."""
    name = data[at + 4 : at + 8]
    if not name[:1].isupper() and name != b"tRNS":
        for found in _NEXT.finditer(data, at + 8):
            start = found.start() - 4
            end, _ = _png_chunk(data, start)
            if end <= len(data) and zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end]):
                return start
    raise DamagedError(f"the PNG breaks off in its chunk {name!r} at byte {at:,}; copy the file again")


def _says_how_turned(name: bytes, text: bytes) -> bool:
    key, _, rest = text.partition(b"\0")
    if name not in (b"tEXt", b"zTXt", b"iTXt") or key not in _TURNED_BY or len(text) > _TEXT_LIMIT:
        return False
    if name == b"zTXt":
        return _short(rest[1:])
    return name == b"tEXt" or rest[:1] == b"\0" or _short(rest[2:].split(b"\0", 2)[-1])


def _short(compressed: bytes) -> bool:
    stream = zlib.decompressobj()
    try:
        stream.decompress(compressed, _TEXT_LIMIT)
    except zlib.error:
        return False
    return not stream.unconsumed_tail


def without_metadata(data: bytes) -> bytes | None:
    """The same picture with only the metadata that it needs to be shown; None if nothing can be left out."""
    try:
        if data.startswith(JPEG):
            rest = _jpeg_pixels(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            rest = _webp_pixels(data)
        elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            rest = _tiff_pixels(data)
        else:
            return None
    except (struct.error, IndexError):
        return None
    return None if rest == data else rest


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment, up to the first scan's."""
    at = 2
    while data[at] == 0xFF:
        if (marker := data[at + 1]) == 0xFF:  # a filling byte
            at += 1
            continue
        end = at + 2 + int(struct.unpack_from(">H", data, at + 2)[0])
        yield marker, at, end
        if marker == 0xDA:
            return
        at = end


def _jpeg_pixels(data: bytes) -> bytes:
    kept = [data[:2]]
    end = 2
    for marker, start, end in _jpeg_segments(data):
        text = data[start + 4 : end]
        is_needed = (
            not (0xE0 <= marker <= 0xEF or marker == 0xFE)
            or (marker == 0xE0 and text.startswith(b"JFIF\0") and len(text) >= 14)
            or (marker == 0xEE and text.startswith(b"Adobe") and len(text) >= 12)
            or (marker == 0xE1 and text.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")))
        )
        if is_needed:
            kept.append(data[start:end])
    return b"".join((*kept, data[end:]))


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        yield name, at, at + 8 + length
        at += 8 + length + length % 2


def _webp_pixels(data: bytes) -> bytes:
    kept = b""
    for name, start, end in _webp_chunks(data):
        if name == b"VP8X":
            flags = data[start + 8] & ~0b101100  # no ICC profile, no EXIF, no XMP
            kept += data[start : start + 8] + bytes([flags]) + data[start + 9 : end]
        elif name in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            kept += data[start : end + (end - start) % 2]
    return b"RIFF" + struct.pack("<I", len(kept) + 4) + b"WEBP" + kept


def _tiff_pixels(data: bytes) -> bytes:
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[:4]
    count_form, step, offset_form = ("Q", 20, "Q") if big else ("H", 12, "I")
    at = struct.unpack_from(order + offset_form, data, 8 if big else 4)[0]
    count = struct.unpack_from(order + count_form, data, at)[0]
    start = at + struct.calcsize(count_form)
    entries = (data[start + i * step : start + (i + 1) * step] for i in range(min(count, len(data) // step)))
    kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in _TIFF_TAGS]
    table = struct.pack(order + count_form, len(kept)) + b"".join(kept) + bytes(8 if big else 4)
    return data[:at] + table + data[at + len(table) :]


def check_scans(data: bytes) -> None:
    """Looks for damage that the decoders of JPEG and WebP pass over in silence.

    Neither format has a checksum: changed bits in the picture's data that still decode are not found.

    Raises:
        DamagedError: the file's end was never written, or a JPEG's scan holds what no scan can hold.
    """
    if data.startswith(JPEG):
        _check_jpeg(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        for name, start, end in _webp_chunks(data):
            if name in (b"VP8 ", b"VP8L") and end - start > _SECTOR and not any(data[end - _SECTOR : end]):
                raise DamagedError(f"the last {_SECTOR} bytes of the WebP's pixels are zeros; copy the file again")


_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")


def _check_jpeg(data: bytes) -> None:
    scan = start = frame = interval = 0
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xDD:
            interval = int.from_bytes(data[start + 4 : start + 6])
        elif marker in (0xC0, 0xC1):
            frame = start + 4
        scan = end
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

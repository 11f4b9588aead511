"""Check a PNG's chunks, and remove those that say nothing about its pixels."""

import re
import struct
import zlib

from sea_pipeline.inputs.image_bytes.base import DamagedError

PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_LIMIT = 1 << 20
"""Pillow refuses a PNG whose text is longer than this once decompressed."""
_BLOCK, _TAIL = 65_536, 256
"""Bytes of a chunk that Pillow reads at once, and bytes of the pixels' end that must come in one piece."""
_TURNED_BY = (b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Keywords of the texts in which Pillow looks for the orientation of a PNG."""
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
_NEXT = re.compile(b"(?=" + b"|".join((*_PIXEL_CHUNKS, b"[a-z][A-Za-z][A-Z][A-Za-z]")) + b")")
"""Matches of no width, because the bytes of a length may be letters, too, and matches may overlap."""


def png_pixels(data: bytes) -> bytes:
    """Check a PNG's chunks and leave out those that say nothing about its pixels.

    Raises:
        DamagedError: a chunk that holds pixels, the palette or the transparency differs from its checksum, or the
            last one is missing.
    """
    kept: list[tuple[bytes, int, int]] = []
    view = memoryview(data)
    at = len(PNG)
    while True:
        end, name = _png_chunk(data, at)
        needed = name in _PIXEL_CHUNKS
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
    """Join the chunks to a file whose last IDAT chunk also holds the end of the pixels and its stream's checksum.

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
    """Tell whether a chunk begins here.

    A chunk that is needed counts even if it is damaged; any other must match its checksum.
    """
    return data[at + 4 : at + 8] in _PIXEL_CHUNKS or _is_sound(data, at)


def _is_sound(data: bytes, at: int) -> bool:
    if at + 12 > len(data):
        return False
    end, _ = _png_chunk(data, at)
    return end <= len(data) and zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])


def _was_needed(data: bytes, at: int, end: int) -> bool:
    """Tell whether the checksum matches if the chunk is given the name of a needed one."""
    expected = int.from_bytes(data[end - 4 : end])
    return any(zlib.crc32(data[at + 8 : end - 4], zlib.crc32(name)) == expected for name in _PIXEL_CHUNKS)


def _next_chunk(data: bytes, at: int) -> int:
    """Find the next sound chunk, after one at `at` whose length or name cannot be right.

    Raises:
        DamagedError: that chunk is a needed one, or there is none after it.
    """
    name = data[at + 4 : at + 8]
    if name not in _PIXEL_CHUNKS:
        for found in _NEXT.finditer(data, at + 8):
            if _is_sound(data, start := found.start() - 4):
                return start
    shown = repr(name)[2:-1]
    raise DamagedError(f"the PNG breaks off in its chunk {shown} at byte {at:,}; copy the file again")


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

"""Damage at random: to bytes, to text, to files; each says what it did, and which of the old bytes it touched."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Mutated(NamedTuple):
    """Bytes that have been damaged."""

    data: bytes
    done: str
    """For people."""
    touched: tuple[tuple[int, int], ...]
    """Half-open ranges of the old bytes that are other ones now, or gone; an empty one where something was put in."""
    moves: bool = False
    """Whether what lies behind is at another place now."""

    def leaves(self, start: int, end: int) -> bool:
        """Whether old bytes are all there, side by side."""
        return not any(
            (first < end and start < last) or (first == last and start < first < end) for first, last in self.touched
        )

    def leaves_in_place(self, start: int, end: int) -> bool:
        """The same, and at the same place."""
        return self.leaves(start, end) and not (self.moves and any(first < end for first, _ in self.touched))


def flipped(data: bytes, random: random.Random) -> Mutated:
    places = sorted({random.randrange(len(data)) for _ in range(random.choice((1, 1, 1, 2, 8)))})
    changed = bytearray(data)
    for place in places:
        changed[place] ^= 1 << random.randrange(8)
    return Mutated(bytes(changed), f"bits flipped at {places}", tuple((place, place + 1) for place in places))


def overwritten(data: bytes, random: random.Random) -> Mutated:
    start, end = _range(data, random)
    fill, name = random.choice(
        [(bytes(end - start), "zeros"), (b"\xff" * (end - start), "ones"), (random.randbytes(end - start), "noise")]
    )
    return Mutated(data[:start] + fill + data[end:], f"{name} at {start} to {end}", ((start, end),))


def cut(data: bytes, random: random.Random) -> Mutated:
    at = random.randrange(len(data))
    return Mutated(data[:at], f"cut at {at}", ((at, len(data)),))


def beheaded(data: bytes, random: random.Random) -> Mutated:
    at = random.randrange(1, len(data) + 1)
    return Mutated(data[at:], f"the first {at} bytes gone", ((0, at),), moves=True)


def removed(data: bytes, random: random.Random) -> Mutated:
    start, end = _range(data, random)
    return Mutated(data[:start] + data[end:], f"{start} to {end} gone", ((start, end),), moves=True)


def inserted(data: bytes, random: random.Random) -> Mutated:
    at, more = random.randrange(len(data) + 1), random.randbytes(random.choice((1, 2, 7, 512, 700)))
    if random.random() < 0.3:
        more = bytes(len(more))
    return Mutated(data[:at] + more + data[at:], f"{len(more)} bytes put in at {at}", ((at, at),), moves=True)


def doubled(data: bytes, random: random.Random) -> Mutated:
    start, end = _range(data, random)
    return Mutated(data[:end] + data[start:], f"{start} to {end} twice", ((end, end),), moves=True)


def swapped(data: bytes, random: random.Random) -> Mutated:
    size = max(1, min(random.choice((1, 16, 512)), len(data) // 2))
    one, other = sorted((random.randrange(len(data) - size + 1), random.randrange(len(data) - size + 1)))
    if other - one < size:
        return flipped(data, random)
    changed = bytearray(data)
    changed[one : one + size], changed[other : other + size] = data[other : other + size], data[one : one + size]
    return Mutated(
        bytes(changed), f"{size} bytes swapped, {one} and {other}", ((one, one + size), (other, other + size))
    )


def other_magic(data: bytes, random: random.Random) -> Mutated:
    magic = random.choice(_MAGICS)
    return Mutated(magic + data[len(magic) :], f"begins as {magic!r}", ((0, len(magic)),))


_MAGICS = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x10\0\0\0WEBPVP8 ", b"II*\0\x08\0\0\0", b"MM\0*", b"GIF89a"),
    *(b"BM", b"PAR1", b"\x1f\x8b\x08", b"PK\3\4", b"<!DOCTYPE html>", b'{"error":', b"%PDF-1.7", b"ARROW1\0\0"),
)


def emptied(data: bytes, random: random.Random) -> Mutated:
    return Mutated(b"", "emptied", ((0, len(data)),))


BYTES: tuple[Callable[[bytes, random.Random], Mutated], ...] = (
    *(flipped, flipped, overwritten, overwritten, cut, removed, inserted, doubled, swapped, other_magic),
    *(beheaded, emptied),
)
"""What is likelier stands there more than once."""


def mutated(data: bytes, random: random.Random) -> Mutated:
    """One damage of those above; of no bytes nothing is left to damage."""
    return random.choice(BYTES)(data, random) if data else Mutated(b"\0", "a byte put in", ((0, 0),))


TOKENS = (
    *(b'"', b"'", b"\0", b"\r", b"\n", b"\r\n", b"\t", b",", b"\\", b"\\u0000", b"\\ud800", b"\xff", b"\xc3", b"\xa0"),
    *("\ufeff".encode(), "\u200b".encode(), "\u2028".encode(), "\x85".encode(), b"[", b"]", b"{", b"}", b"[" * 5000),
    *(b'{"a":' * 5000, b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"null", b"true", b'""', b"#", b"/"),
    *(b"../", b"~", b": ", b"- ", b"&a *a", b"!!python/object:os.system x", b"<<: *x", b"%YAML 9", b"---\n"),
    *(b"\x1b[31m", b"2001-99-99", b"0x", b"1_0", b"?", b"|", b">", b"a" * 70_000),
)
"""What texts of some format trip over."""


def mutated_text(data: bytes, random: random.Random) -> Mutated:
    """Damage to a text: that of bytes, or a token put in, or lines out of order, or another encoding."""
    kind = random.randrange(10)
    if kind < 4 or not data:
        return mutated(data, random)
    if kind < 8:
        token = random.choice(TOKENS)
        starts = [0, *(place + 1 for place, byte in enumerate(data) if byte in b'\n,:"')]
        at = random.choice([random.randrange(len(data) + 1), random.choice(starts)])
        return Mutated(data[:at] + token + data[at:], f"{token[:20]!r} put in at {at}", ((at, at),), moves=True)
    everything = ((0, len(data)),)
    if kind == 8:
        lines = data.splitlines(keepends=True)
        random.shuffle(lines)
        return Mutated(b"".join(lines), "lines shuffled", everything, moves=True)
    name, change = random.choice(list(_RECODED.items()))
    return Mutated(change(data), name, everything, moves=True)


_RECODED: dict[str, Callable[[bytes], bytes]] = {
    "UTF-16": lambda data: data.decode(errors="replace").encode("utf-16"),
    "a BOM": lambda data: b"\xef\xbb\xbf" + data,
    "CR LF": lambda data: data.replace(b"\n", b"\r\n"),
    "CR": lambda data: data.replace(b"\n", b"\r"),
    "twice": lambda data: data + data,
    "blank lines": lambda data: data.replace(b"\n", b"\n\n \n"),
    "no last line's end": lambda data: data.rstrip(b"\n"),
}


def _range(data: bytes, random: random.Random) -> tuple[int, int]:
    start = random.randrange(len(data))
    return start, min(len(data), start + random.choice((1, 4, 30, 512, 2000)))


def harmed(path: Path, random: random.Random, others: list[Path]) -> str:
    """Damages a file, whatever it is: its bytes, or what lies at its place; says how. `others` may take its place."""
    kind = random.randrange(13)
    if kind == 12:
        path.chmod(0)
        return "unreadable" + (", but not to this user" if os.access(path, os.R_OK) else "")
    if kind < 6:
        found = mutated(path.read_bytes(), random)
        path.write_bytes(found.data)
        return found.done
    if kind == 6 and (others := [other for other in others if other != path]):
        other = random.choice(others)
        shutil.copyfile(other, path)
        return f"replaced by {other.name} of another folder or place"
    path.unlink()
    if kind < 9:
        return "removed"
    if kind == 9:
        path.mkdir()
        if random.random() < 0.5:
            (path / "notes").write_text("of mine")
        return "replaced by a folder"
    path.symlink_to("/nowhere/at/all" if kind == 10 else path.name)
    return "replaced by a link to " + ("nowhere" if kind == 10 else "itself")

"""The members of a tar to the end of its file, behind end markers, holes and damage, too; where its links lead."""

import io
import tarfile
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO, cast

from sea_pipeline.core.errors import one_line

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_LONGEST = 1 << 20
"""Bytes of a name or of a pax header, at most: a damaged one may say any number."""
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd", b"PK\3\4", b"7z\xbc\xaf")
"""How files begin that tars are packed in; such a file is not searched for headers."""
_PACKED = "it is compressed"
_MAGIC, _TO_MAGIC = b"ustar", 257
"""What headers hold there, but for those of the seventies."""


class Members:
    """What lies in a tar, in its order. What is wrong with it is known when all members have been asked for.

    `tarfile` itself stops at the first block that is no header, and `cat a.tar b.tar` has such blocks in its middle.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.damage: list[str] = []
        """A phrase for each place that is damaged."""
        self.markers = 0
        """How often members follow behind blocks of zeros."""
        self._raw = file
        self._size = file.seek(0, io.SEEK_END)
        self._file = _Bounded(file, self._size)
        # Not over our file at once: it refuses one that begins with a hole.
        self._tar = tarfile.TarFile(fileobj=io.BytesIO(bytes(_BLOCK)), encoding="utf-8", errors="surrogateescape")
        self._tar.fileobj = cast(BinaryIO, self._file)

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        place, behind_zeros = 0, False
        data: int | None = None
        while place < self._size or data is not None:
            member = self._member(place) if place < self._size else ""
            if isinstance(member, tarfile.TarInfo):
                self.markers += behind_zeros
                behind_zeros, data = False, member.offset_data
                yield member
                place = self._behind(member)
            elif not self._block(place).strip(b"\0"):  # also at the end of the file
                if data is not None and (swallowed := self._swallowed(data, place)) is not None:
                    self.damage.append(f"bytes are missing before the header at byte {swallowed:,}")
                    place, data = swallowed, None
                    continue
                behind_zeros, data = behind_zeros or place < self._size, None
                self._tar.pax_headers = {}  # those of a whole archive, which ends here
                place = self._skip_zeros(place)
            else:
                self.damage.append(member)
                # A member that was cut off holds the headers of what was put behind it.
                place, data = self._search(place + 1 if data is None else data), None
        if not (behind_zeros or self.damage):
            self.damage.append("it has no end marker, so it may have been cut off" if self._size else "it is empty")

    def _member(self, place: int) -> tarfile.TarInfo | str:
        """The member whose header is there, or why there is none."""
        self._file.seek(place)
        try:
            member = tarfile.TarInfo.fromtarfile(self._tar)
            if member.size < 0 or self._tar.offset <= place:
                raise tarfile.HeaderError(f"it says a size of {member.size:,} bytes")
            if not member.name:
                raise tarfile.HeaderError("it says no name")
        except Exception as error:  # what damaged numbers, maps and names lead `tarfile` to
            if self._file.failed:
                raise
            if place == 0 and self._block(0).startswith(_COMPRESSED):
                return _PACKED
            if not _is_header(self._block(place)):
                return f"no header at byte {place:,}"
            return f"the header at byte {place:,} cannot be read: {one_line(error)}"
        return member

    def _behind(self, member: tarfile.TarInfo) -> int:
        """Where the header behind a member is, or the next one that is found if it says more than the file holds."""
        if self._tar.offset <= self._size:
            return self._tar.offset
        self.damage.append(f"the member at byte {member.offset:,} ends behind the end of the file")
        return self._search(member.offset_data)

    def _swallowed(self, data: int, end: int) -> int | None:
        """Finds a header in the bytes of a member behind which there is none: bytes before it have been lost.

        A member that is a tar itself begins with a header, and holds others by right.
        """
        if _is_header(self._block(data)):
            return None
        found = self._search(data, end)
        return found if found < min(end, self._size) else None

    def _search(self, place: int, end: int | None = None) -> int:
        """Where the next header is; the file's end if there is none, or if the file is compressed."""
        if self.damage == [_PACKED]:
            return self._size
        for start in range(place, self._size if end is None else end, _CHUNK):
            chunk = self._read(start, _CHUNK + _BLOCK)
            magic = chunk.find(_MAGIC, _TO_MAGIC)
            while magic >= 0:
                if _is_header(chunk[magic - _TO_MAGIC : magic - _TO_MAGIC + _BLOCK]):
                    return start + magic - _TO_MAGIC
                magic = chunk.find(_MAGIC, magic + 1)
        return self._size

    def _skip_zeros(self, place: int) -> int:
        """Where the next block is that holds something else; the file's end if there is none."""
        for start in range(place, self._size, _CHUNK):
            chunk = self._read(start, _CHUNK)
            if rest := chunk.lstrip(b"\0"):
                return start + (len(chunk) - len(rest)) // _BLOCK * _BLOCK
        return self._size

    def _block(self, place: int) -> bytes:
        return self._read(place, _BLOCK)

    def _read(self, place: int, size: int) -> bytes:
        self._raw.seek(place)
        return self._raw.read(size)


class _Bounded:
    """A file for `tarfile`, which asks for as many bytes as a header says."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.failed = False
        """Whether it could not be read, which says nothing about what is in it."""
        self._file = file
        self._size = size

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int) -> int:
        return self._file.seek(min(max(place, 0), self._size))

    def read(self, size: int) -> bytes:
        self.failed = True
        data = self._file.read(min(max(size, 0), _LONGEST))
        self.failed = False
        return data


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


_MOST_LINKS = 40
"""On one way, as Linux has it: more go in circles."""


def followed(path: str, links: Mapping[str, str]) -> str | None:
    """Follows the links on the way to a member; None if that leaves the tar or goes in circles.

    Args:
        path: normalised, with slashes.
        links: what symbolic links say, by their own paths.
    """
    done: list[str] = []
    ahead = deque(path.split("/"))
    left = _MOST_LINKS
    while ahead:
        part = ahead.popleft()
        if part == "..":
            if not done:
                return None
            done.pop()
        elif part not in ("", "."):
            done.append(part)
            target = links.get("/".join(done))
            if target is not None:
                done.pop()
                left -= 1
                if left < 0 or target.startswith("/"):
                    return None
                ahead.extendleft(reversed(target.split("/")))
    return "/".join(done)


def folders(paths: Iterable[str]) -> dict[str, list[str]]:
    """What lies in each folder, by the paths of files and links; the top is called ""."""
    inner: defaultdict[str, list[str]] = defaultdict(list)
    known = set()
    for path in paths:
        while path and path not in known:
            known.add(path)
            parent = path.rpartition("/")[0]
            inner[parent].append(path)
            path = parent
    return dict(inner)


def through_folders(
    tree: Mapping[str, list[str]], links: Mapping[str, str], left_out: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Gives what links to folders lead to: the path through the link, and that of the member or of a further link.

    As in a folder, a link is followed unless it leads back to where we came from; those are counted in `left_out`.
    """
    ahead = deque((link, link, _above(link)) for link in links if followed(link, links) in tree)
    while ahead:
        shown, path, trail = ahead.popleft()
        real = followed(path, links) if path in links else path
        if real is None or real not in tree:
            yield shown, path
        elif real in trail:
            left_out["links that lead back to a folder above them"] += 1
        else:
            ahead.extend((f"{shown}/{child.rpartition('/')[2]}", child, trail | {real}) for child in tree[real])


def _above(path: str) -> frozenset[str]:
    """The folders that a path lies in."""
    parts = path.split("/")
    return frozenset("/".join(parts[:count]) for count in range(len(parts)))

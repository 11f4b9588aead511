"""Read the members of a tar to the end of its file, past end markers, holes and damage, and follow its links."""

import io
import re
import tarfile
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO, Self, cast

from sea_pipeline.core.errors import one_line

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_LONGEST = 1 << 20
"""The most bytes of a name or a pax header, because a damaged one may claim any number."""
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd", b"PK\3\4", b"7z\xbc\xaf")
"""The first bytes of compressed files; such a file is not searched for headers."""
_PACKED = "it is compressed"
_TIME = re.compile(rb"[0-7]{11}[\0 ]|[\x80\xff]")
"""A number as in the fields of old-GNU headers, in octal digits or in binary."""
_MAGIC, _TO_MAGIC = b"ustar", 257
"""The magic of a header and its offset; only headers of the 1970s lack it."""
_OLD_GNU = b"ustar  \0"
"""The magic of a header in which times take the place of the first part of a long name."""


class _Header(tarfile.TarInfo):
    """A header without the times that `tarfile` puts in front of its name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        field = buf[345:500].partition(b"\0")[0]
        # Go before 1.8 wrote names with that magic.
        is_name = buf[_TO_MAGIC : _TO_MAGIC + 8] != _OLD_GNU or not _TIME.match(buf, 345)
        if not is_name and member.type not in tarfile.GNU_TYPES:  # to whose names `tarfile` adds nothing
            member.name = member.name.removeprefix(f"{field.decode(encoding, errors)}/")
        return member


class Members:
    """Yields the members of a tar in its order. What is wrong with the tar is known after the last of them.

    `tarfile` itself stops at the first block that is no header, and `cat a.tar b.tar` has such blocks in its middle.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.damage: list[str] = []
        """A phrase for each place that is damaged."""
        self.markers = 0
        """How often members follow after blocks of zeros."""
        self._raw = file
        self._size = file.seek(0, io.SEEK_END)
        self._file = _BoundedFile(file, self._size)
        # TarFile gets our file only afterwards, because its constructor refuses a file that begins with a hole.
        self._tar = tarfile.TarFile(fileobj=io.BytesIO(bytes(_BLOCK)), encoding="utf-8", errors="surrogateescape")
        self._tar.fileobj = cast(BinaryIO, self._file)

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        offset, behind_zeros = 0, False
        data: int | None = None
        while offset < self._size or data is not None:
            member = self._member(offset) if offset < self._size else ""
            if isinstance(member, tarfile.TarInfo):
                self.markers += behind_zeros
                behind_zeros, data = False, member.offset_data
                yield member
                offset = self._behind(member)
            elif not self._block(offset).strip(b"\0"):  # also at the end of the file
                if data is not None and (swallowed := self._swallowed(data, offset)) is not None:
                    self.damage.append(f"bytes are missing before the header at byte {swallowed:,}")
                    offset, data = swallowed, None
                    continue
                behind_zeros, data = behind_zeros or offset < self._size, None
                self._tar.pax_headers = {}  # global headers hold for one archive, which ends here
                offset = self._skip_zeros(offset)
            else:
                self.damage.append(member)
                # If a member was cut off, the headers of the next members lie inside its stated size.
                offset, data = self._search(offset + 1 if data is None else data), None
        if not (behind_zeros or self.damage):
            self.damage.append("it has no end marker, so it may have been cut off" if self._size else "it is empty")

    def _member(self, offset: int) -> tarfile.TarInfo | str:
        """Read the member whose header is at `offset`, or return why there is none."""
        self._file.seek(offset)
        try:
            member = _Header.fromtarfile(self._tar)
            if member.size < 0 or self._tar.offset <= offset:
                raise tarfile.HeaderError(f"it says a size of {member.size:,} bytes")
            if not member.name:
                raise tarfile.HeaderError("it says no name")
        except Exception as error:  # on damaged numbers, maps and names `tarfile` raises any kind of exception
            if self._file.failed:
                raise
            if offset == 0 and self._block(0).startswith(_COMPRESSED):
                return _PACKED
            if not _is_header(self._block(offset)):
                return f"no header at byte {offset:,}"
            return f"the header at byte {offset:,} cannot be read: {one_line(error)}"
        return member

    def _behind(self, member: tarfile.TarInfo) -> int:
        """Find the header after a member.

        If its size reaches beyond the file, search for the next header.
        """
        if self._tar.offset <= self._size:
            return self._tar.offset
        self.damage.append(f"the member at byte {member.offset:,} ends behind the end of the file")
        return self._search(member.offset_data)

    def _swallowed(self, data: int, end: int) -> int | None:
        """Find a header inside a member that no header follows, which means that bytes before it were lost.

        A member that is a tar itself begins with a header, and rightly holds others.
        """
        if _is_header(self._block(data)):
            return None
        found = self._search(data, end)
        return found if found < min(end, self._size) else None

    def _search(self, offset: int, end: int | None = None) -> int:
        """Find the next header, or the file's end if there is none or the file is compressed."""
        if self.damage == [_PACKED]:
            return self._size
        for start in range(offset, self._size if end is None else end, _CHUNK):
            chunk = self._read(start, _CHUNK + _BLOCK)
            magic = chunk.find(_MAGIC, _TO_MAGIC)
            while magic >= 0:
                if _is_header(chunk[magic - _TO_MAGIC : magic - _TO_MAGIC + _BLOCK]):
                    return start + magic - _TO_MAGIC
                magic = chunk.find(_MAGIC, magic + 1)
        return self._size

    def _skip_zeros(self, offset: int) -> int:
        """Find the next block that is not all zeros, or the file's end if there is none."""
        for start in range(offset, self._size, _CHUNK):
            chunk = self._read(start, _CHUNK)
            if rest := chunk.lstrip(b"\0"):
                return start + (len(chunk) - len(rest)) // _BLOCK * _BLOCK
        return self._size

    def _block(self, offset: int) -> bytes:
        return self._read(offset, _BLOCK)

    def _read(self, offset: int, size: int) -> bytes:
        self._raw.seek(offset)
        return self._raw.read(size)


class _BoundedFile:
    """A file for `tarfile` that limits reads, because `tarfile` asks for as many bytes as a header says."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.failed = False
        """Whether the last read failed, which says nothing about the contents."""
        self._file = file
        self._size = size

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int) -> int:
        return self._file.seek(min(max(offset, 0), self._size))

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
"""The most links on one path, as in Linux; more of them go in circles."""


def followed(path: str, links: Mapping[str, str]) -> str | None:
    """Follow the links on the path to a member, or None if they leave the tar or go in circles.

    Args:
        path: normalised, with slashes.
        links: the targets of symbolic links, by the links' own paths.
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
    """List the entries of each folder, from the paths of files and links.

    The top folder is "".
    """
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
    """Yield what links to folders lead to, each as its path through the link and the path of the entry itself.

    The entry is a member or a further link. As in a folder, a link is followed unless it leads back to a folder above
    it; those are counted in `left_out`.
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
    """Return the folders that a path lies in."""
    parts = path.split("/")
    return frozenset("/".join(parts[:count]) for count in range(len(parts)))

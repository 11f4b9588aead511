"""Read a file by single requests, with nothing open in between."""

import errno
import io
from collections.abc import Callable
from typing import Any, BinaryIO, cast

_BLOCK = 1 << 16
"""Bytes of the smallest read, so that lists and the headers of tars need few requests."""


def ranged_file(part: Callable[[str, int, int], bytes], name: str, size: int) -> BinaryIO:
    """Make a buffered, seekable file from a function that reads parts of it.

    Args:
        part: returns bytes, given the name, the start and the length.
        name: the file, for `part`.
        size: its bytes.
    """
    return cast(BinaryIO, io.BufferedReader(_RangeFile(part, name, size), _BLOCK))


class _RangeFile(io.RawIOBase):
    def __init__(self, part: Callable[[str, int, int], bytes], name: str, size: int) -> None:
        self._part = part
        self._name = name
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - whatever has a buffer
        length = max(0, min(len(buffer), self._size - self._place))
        data = self._part(self._name, self._place, length) if length else b""
        if len(data) > length:
            raise OSError(errno.EPROTO, f"expected at most {length:,} bytes of a file, got {len(data):,}")
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

"""Serve rows that can only be read forward to threads that ask for them nearly in order.

There may be two readers, each with an order of its own, because on a GPU two shards are read at once.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

_READERS = 2
_ROWS = 64
_BYTES = 64 << 20

_Row = TypeVar("_Row")


@dataclass(eq=False)
class _Reader(Generic[_Row]):
    rows: Iterator[_Row]
    next: int
    piece: int
    """The first row of the piece that it reads."""


def out_of_order() -> int:
    """Return by how many rows threads may ask out of order: 64, or one row a thread of the process."""
    return max(_ROWS, threading.active_count())


class Forward(Generic[_Row]):
    """Rows by their number. The latest rows stay in memory, `out_of_order` of them or 64 MB, whichever is more.

    Args:
        begin: opens an iterator at or before a row; returns the row that it begins with, and the iterator. After an
            exception from it, the next row asked for begins anew.
        size: returns the bytes of a row.
        start: returns the first row of the piece that a row is in; an iterator ends with its piece.
    """

    def __init__(
        self,
        begin: Callable[[int], tuple[int, Iterator[_Row]]],
        size: Callable[[_Row], int],
        start: Callable[[int], int] = lambda _: 0,
    ) -> None:
        self._begin = begin
        self._size = size
        self._start = start
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, _Row] = OrderedDict()
        self._bytes = 0
        self._readers: list[_Reader[_Row]] = []
        """In the order of their use, the latest one last."""

    def __getitem__(self, row: int) -> _Row:
        """Return one row.

        Raises:
            IndexError: there are fewer rows.
        """
        with self._lock:
            if row in self._kept:
                return self._kept[row]
            reader = self._reader(row)
            try:
                while reader.next <= row:
                    self._keep(reader.next, next(reader.rows))
                    reader.next += 1
            except StopIteration:
                self._readers.remove(reader)
                raise IndexError(f"row {row:,} of {reader.next:,}") from None
            except BaseException:
                self._readers.remove(reader)
                raise
            return self._kept[row]

    def _reader(self, row: int) -> _Reader[_Row]:
        """Return the nearest reader before a row in its piece, or open a new one."""
        piece = self._start(row)
        ahead = [reader for reader in self._readers if reader.piece == piece and reader.next <= row]
        if ahead:
            reader = max(ahead, key=lambda reader: reader.next)
            self._readers.remove(reader)
        else:
            first, rows = self._begin(row)
            reader = _Reader(rows, first, piece)
            del self._readers[: len(self._readers) - _READERS + 1]
        self._readers.append(reader)
        return reader

    def _keep(self, row: int, value: _Row) -> None:
        if row in self._kept:
            self._bytes -= self._size(self._kept.pop(row))
        self._kept[row] = value
        self._bytes += self._size(value)
        while self._bytes > _BYTES and len(self._kept) > out_of_order():
            self._bytes -= self._size(self._kept.popitem(last=False)[1])

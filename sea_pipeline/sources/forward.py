"""Rows that can only be read forward, for readers that ask for them nearly in order, from several threads."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

_ROWS = 64
_BYTES = 64 << 20

_Row = TypeVar("_Row")


class Forward(Generic[_Row]):
    """Rows by their number; the latest ones stay, at most 64 or 64 MB, whichever is more.

    Args:
        begin: opens an iterator at or before a row; gives the row that it begins with, and the iterator. After an
            exception out of it, the next row asked for begins anew.
        size: of a row, in bytes.
        start: the first row of the piece that a row is in; an iterator ends with its piece.
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
        self._rows: Iterator[_Row] | None = None
        self._next = self._piece = 0

    def __getitem__(self, row: int) -> _Row:
        """One row.

        Raises:
            IndexError: there are not so many rows.
        """
        with self._lock:
            if row in self._kept:
                return self._kept[row]
            if self._rows is None or self._next > row or self._piece != self._start(row):
                self._piece = self._start(row)
                self._next, self._rows = self._begin(row)
            try:
                while self._next <= row:
                    self._keep(next(self._rows))
            except StopIteration:
                self._rows = None
                raise IndexError(f"row {row:,} of {self._next:,}") from None
            except BaseException:
                self._rows = None
                raise
            return self._kept[row]

    def _keep(self, value: _Row) -> None:
        if self._next in self._kept:
            self._bytes -= self._size(self._kept.pop(self._next))
        self._kept[self._next] = value
        self._bytes += self._size(value)
        while len(self._kept) > _ROWS and self._bytes > _BYTES:
            self._bytes -= self._size(self._kept.popitem(last=False)[1])
        self._next += 1

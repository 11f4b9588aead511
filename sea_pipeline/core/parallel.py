"""Work done ahead by threads, in order; and what comes in any order, given on in its own."""

import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, NamedTuple, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def batched(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    """`size` items at a time; the last ones may be fewer."""
    while batch := list(islice(items, size)):
        yield batch


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Iterable[_Item], count: int
) -> Iterator[_Result]:
    """The results of `work` in the order of `items`, at most `count` of them computed before they are asked for."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def side_by_side(
    work: Callable[[_Item], _Result], items: Iterable[_Item], count: int, leaving: threading.Event
) -> Generator[_Result]:
    """The results of `work` in the order of `items`, `count` at once: one alone in the caller's thread.

    `leaving` is set when the caller closes this, or is interrupted: for the work of other threads to end early.
    """
    if count == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(count, "beside") as pool:
        try:
            yield from ahead(pool, work, items, count - 1)
        finally:
            leaving.set()


@contextmanager
def lanes(count: int) -> Iterator[ThreadPoolExecutor]:
    """So many threads for torch's work, which share its cores: each is to compute a batch of its own.

    Cores that share each operation wait for each other at its end, a thousand times an image, and for whatever else
    runs on one of them.
    """
    import torch

    cores = torch.get_num_threads()
    each = max(1, cores // count)
    try:
        with ThreadPoolExecutor(count, "lane", initializer=lambda: torch.set_num_threads(each)) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)  # torch keeps the number by thread, and for the process


_Arrays = Sequence[npt.NDArray[Any]]


class _Waiting(NamedTuple):
    item: Any
    start: int
    """Where its arrays begin in the file, one behind the other."""
    kinds: list[tuple[np.dtype[Any], tuple[int, ...]]]
    """The type and the shape of each."""


class InOrder(Generic[_Item]):
    """Gives items on in the order of their places 0, 1, 2, …, each as soon as all places before it are settled.

    Args:
        give: told of an item and its arrays.
        folder: where the arrays of early items wait, in a file without a name: a kill leaves nothing behind.
    """

    def __init__(self, give: Callable[[_Item, _Arrays], None], folder: Path) -> None:
        self._give = give
        self._folder = folder
        self._next = 0
        self._waiting: dict[int, _Waiting | None] = {}
        self._opened: BinaryIO | None = None
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            self._opened.close()

    def add(self, place: int, item: _Item, arrays: _Arrays) -> None:
        """Settles a place with an item, which stays in memory, and its arrays, which do not."""
        if place == self._next:
            self._give(item, arrays)
            self._settle()
            return
        kinds = [(array.dtype, array.shape) for array in arrays]
        self._waiting[place] = _Waiting(item, self._end, kinds)
        self._file.seek(self._end)
        for array in arrays:
            self._end += self._file.write(np.ascontiguousarray(array).tobytes())

    def skip(self, place: int) -> None:
        """Settles a place with nothing."""
        if place == self._next:
            self._settle()
        else:
            self._waiting[place] = None

    def _settle(self) -> None:
        self._next += 1
        while self._next in self._waiting:
            if (waiting := self._waiting.pop(self._next)) is not None:
                self._give(waiting.item, self._arrays(waiting))
            self._next += 1

    def _arrays(self, waiting: _Waiting) -> _Arrays:
        self._file.seek(waiting.start)
        return [
            np.frombuffer(self._file.read(kind.itemsize * int(np.prod(shape))), kind).reshape(shape)
            for kind, shape in waiting.kinds
        ]

    @property
    def _file(self) -> BinaryIO:
        if self._opened is None:
            self._opened = cast(BinaryIO, tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
        return self._opened

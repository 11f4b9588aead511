"""Run work in threads ahead of its use, and put results back in order."""

import mmap
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, NamedTuple, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_ROOM = 32 << 20
"""Bytes of address space that must be free before work is given to a thread; its stack alone takes 8 MB on Linux."""
_LOOK_SECONDS = 2.0
"""Seconds of waiting for a result until the threads are looked at."""


class ThreadPool(ThreadPoolExecutor):
    """A ThreadPoolExecutor that raises a MemoryError where a limit on memory would make the caller wait for ever.

    Python ends a thread that has no memory for its first calls. If it had not begun, `submit` would wait for it; if it
    had taken a task, the task's future would stay pending.
    """

    def submit(self, work: Callable[..., _Result], /, *given: Any, **named: Any) -> Future[_Result]:  # noqa: ANN401
        """Give work to a thread, if there is room for one.

        See `Executor`.
        """
        try:
            mmap.mmap(-1, _ROOM).close()
        except OSError as error:
            raise MemoryError("no memory for a thread") from error
        return super().submit(work, *given, **named)

    def result(self, future: Future[_Result]) -> _Result:
        """Wait for a result of `submit`, or until a thread has ended, as that one may have had this task."""
        while not future.done():
            with suppress(TimeoutError):
                future.exception(_LOOK_SECONDS)
            if not all(thread.is_alive() for thread in tuple(self._threads)) and not future.done():
                raise MemoryError("a thread has ended, probably for want of memory")
        return future.result()


def batched(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield lists of `size` items.

    The last list may be shorter.
    """
    while batch := list(islice(items, size)):
        yield batch


def prefetched_map(
    pool: ThreadPool, work: Callable[[_Item], _Result], items: Iterable[_Item], count: int | None = None
) -> Iterator[_Result]:
    """Yield the results of `work` in the order of `items`, computed in the pool ahead of their use.

    At most `count` results are computed or under way beyond the one that is asked for; None begins all at the first.
    What has not begun is cancelled when the caller stops.
    """
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if count is not None and len(waiting) > count:
                yield pool.result(waiting.popleft())
        while waiting:
            yield pool.result(waiting.popleft())
    finally:
        for future in waiting:
            future.cancel()


def map_in_order(
    work: Callable[[_Item], _Result], items: Iterable[_Item], count: int, leaving: threading.Event
) -> Generator[_Result]:
    """Yield the results of `work` in the order of `items`, with `count` of them under way at once.

    A count of 1 works in the caller's thread, without a pool.

    Args:
        work: computes the result of one item.
        items: what to work on.
        count: threads.
        leaving: set when the pool ends, also if the caller closes this generator or is interrupted, so that the work
            of other threads can end early.
    """
    if count == 1:
        yield from map(work, items)
        return
    with ThreadPool(count, "beside") as pool:
        try:
            yield from prefetched_map(pool, work, items, count - 1)
        finally:
            leaving.set()


@contextmanager
def torch_thread_pool(count: int) -> Iterator[ThreadPool]:
    """Open a pool of `count` threads that share torch's cores, for work of which each thread computes its own batch.

    This is faster than all cores on one batch: cores that share an operation wait for each other at its end, about a
    thousand times an image, and for other programs that run on one of them.
    """
    import torch

    cores = torch.get_num_threads()
    each = max(1, cores // count)
    try:
        with ThreadPool(count, "lane", initializer=lambda: torch.set_num_threads(each)) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)  # the threads of the pool have also set the number of the process


_Arrays = Sequence[npt.NDArray[Any]]


class _WaitingItem(NamedTuple):
    item: Any
    start: int
    """Offset of its first array in the file; the others follow."""
    kinds: list[tuple[np.dtype[Any], tuple[int, ...]]]
    """The type and the shape of each array."""


class InOrder(Generic[_Item]):
    """Gives items on in the order of their places 0, 1, 2, …, each as soon as all places before it are settled.

    Args:
        give: receives an item and its arrays.
        folder: where the arrays of early items wait, in a file without a name, so that a kill leaves nothing there.
    """

    def __init__(self, give: Callable[[_Item, _Arrays], None], folder: Path) -> None:
        self._give = give
        self._folder = folder
        self._next = 0
        self._waiting: dict[int, _WaitingItem | None] = {}
        self._opened: BinaryIO | None = None
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            self._opened.close()

    def add(self, position: int, item: _Item, arrays: _Arrays) -> None:
        """Settle a place with an item and its arrays.

        An early item waits in memory, its arrays in the file.
        """
        if position == self._next:
            self._give(item, arrays)
            self._settle()
            return
        kinds = [(array.dtype, array.shape) for array in arrays]
        self._waiting[position] = _WaitingItem(item, self._end, kinds)
        self._file.seek(self._end)
        for array in arrays:
            self._end += self._file.write(np.ascontiguousarray(array).tobytes())

    def skip(self, position: int) -> None:
        """Settle a place that has no item."""
        if position == self._next:
            self._settle()
        else:
            self._waiting[position] = None

    def _settle(self) -> None:
        self._next += 1
        while self._next in self._waiting:
            if (waiting := self._waiting.pop(self._next)) is not None:
                self._give(waiting.item, self._arrays(waiting))
            self._next += 1

    def _arrays(self, waiting: _WaitingItem) -> _Arrays:
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

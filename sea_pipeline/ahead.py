"""Work done ahead of who asks for it, by threads, in order."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

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

"""Work done ahead of who asks for it, by threads, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

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


@contextmanager
def lanes(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for torch's work on a CPU, each on a batch of its own; with several, each computes with one core.

    Cores that share each operation wait for each other at its end, a thousand times an image, and for whatever else
    runs on one of them.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, "lane", initializer=_one_core if count > 1 else None) as pool:
            yield pool
    finally:
        if count > 1:
            torch.set_num_threads(threads)  # a part of the setting is the whole process's


def _one_core() -> None:
    torch.set_num_threads(1)

"""How fast pictures become an encoder's input, by threads and by processes; imports nothing that touches a GPU."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from sea_pipeline.encoders import Preprocess
from sea_pipeline.inputs.pixels import read_image

POOLS: dict[str, Callable[[int], Executor]] = {
    "threads": ThreadPoolExecutor,
    # fork: the children start at once; before anything has touched the GPU
    "processes": lambda count: ProcessPoolExecutor(count, multiprocessing.get_context("fork")),
}


def decoded(path: Path, preprocess: Preprocess) -> Any:
    """An image as `label` prepares it: uint8 (S, S, 3)."""
    return preprocess(read_image(path).image).values


def rates(paths: list[Path], preprocess: Preprocess, counts: list[int]) -> dict[str, dict[int, float]]:
    """Images a second by pool and number of workers."""
    work = partial(decoded, preprocess=preprocess)
    found: dict[str, dict[int, float]] = {}
    for kind, pool in POOLS.items():
        found[kind] = {}
        for count in counts:
            with pool(count) as workers:
                list(workers.map(work, paths[:count]))  # so that all have started
                begun = time.perf_counter()
                for _ in workers.map(work, paths, chunksize=1 if kind == "threads" else 8):
                    pass
                found[kind][count] = len(paths) / (time.perf_counter() - begun)
    return found


def workers_for(rate: float, by_count: dict[int, float]) -> float:
    """How many workers give a rate: the first count that does, or as many more as the last one falls short."""
    for count, given in by_count.items():
        if given >= rate:
            return count
    count, given = max(by_count.items())
    return count * rate / given

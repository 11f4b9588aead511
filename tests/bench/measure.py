"""Ratios of two things measured in the same run, in turn, so that a drifting machine changes both."""

import ctypes
import gc
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Figure(NamedTuple):
    """One measured number."""

    name: str
    value: float
    unit: str
    baseline: str
    """What the ratio is over, and the absolute numbers behind it."""


def machine(device: str = "cpu") -> str:
    """What figures are measured on."""
    lines = Path("/proc/cpuinfo").read_text().split("\n") if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.startswith("cuda") else ""
    return f"{gpu}{model}, {os.cpu_count()} cores, torch {torch.__version__}"


def as_json(figure: Figure, where: str) -> dict[str, Any]:
    """What `bench.json` says of a figure, measured on the machine `where`."""
    return {"value": figure.value, "unit": figure.unit, "baseline": figure.baseline, "machine": where}


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    gc.collect()
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def in_turn(*actions: Callable[[], object], repeats: int = 5) -> list[float]:
    """The median seconds of each action, after one call of each that does not count."""
    for action in actions:
        action()
    rounds = [[seconds(action) for action in actions] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def peak_bytes(action: Callable[[], object]) -> int:
    """By how much one call raises this process's resident memory at most, looked at every millisecond; Linux."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 1 << 17)  # tensors from 128 KiB on are given back to the system when they are freed
    gc.collect()
    libc.malloc_trim(0)
    before, peak, running = _resident(), 0, True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, _resident() - before)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        running = False
        watcher.join()
        libc.mallopt(-3, 1 << 25)  # as high as it adapts itself by default: what is timed later must not pay for this
        libc.mallopt(-1, 1 << 26)
    return peak


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

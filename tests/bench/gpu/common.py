"""What the scripts share: their options, time and memory on a device, a table and a JSON file."""

import argparse
import gc
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from sea_pipeline.core.devices import cores
from tests.bench.measure import Figure, as_json, machine, peak_bytes

IMAGES = 558_128
"""LLaVA-1.5's data for stage 1."""
FAILED = ".failed"
"""Ends the name of a figure that stands for what could not be measured."""
Result = TypeVar("Result")


class Setup(NamedTuple):
    """What a script is asked for."""

    device: str
    tiny: bool
    """Everything small: whether the script works, not how fast it is."""
    images: str | None
    scratch: Path
    """A folder that is gone afterwards."""

    def seconds(self, *actions: Callable[[], object], repeats: int = 5) -> list[float]:
        """The median seconds of each action, one after the other in turn, after one call of each to warm up."""
        for action in () if self.tiny else actions:
            action()
        rounds = [[self._once(action) for action in actions] for _ in range(1 if self.tiny else repeats)]
        return [statistics.median(times) for times in zip(*rounds, strict=True)]

    def _once(self, action: Callable[[], object]) -> float:
        if self.device == "cpu":
            begun = time.perf_counter()
            action()
            return time.perf_counter() - begun
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        action()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3

    def peak(self, action: Callable[[], object]) -> int:
        """The most bytes in use during a call: on a GPU all tensors, on a CPU by how much the process grows."""
        if self.device == "cpu":
            return peak_bytes(action)
        self.clear()
        torch.cuda.reset_peak_memory_stats()
        action()
        return torch.cuda.max_memory_allocated()

    def clear(self) -> None:
        """Gives back what is in use no more, so that the next measurement need not."""
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def if_fits(self, measure: Callable[[], Result]) -> Result | None:
        """What `measure` gives, or None where the memory of the GPU does not hold it."""
        try:
            return measure()
        except RuntimeError as error:  # torch.OutOfMemoryError is one; cuBLAS' workspaces raise a plain one
            if not any(said in str(error) for said in ("out of memory", "ALLOC_FAILED")):
                raise
        finally:
            self.clear()
        return None

    def guarded(self, name: str, figures: Iterator[Figure]) -> Iterator[Figure]:
        """The figures; where making one raises, `name.failed` in place of the rest, and what follows goes on."""
        try:
            yield from figures
            return
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        self.clear()
        yield Figure(name + FAILED, math.nan, "", reason)

    def matmul_rate(self, dtype: torch.dtype) -> float:
        """FLOP/s of products of two large square matrices of random numbers, once the GPU runs at its clock."""
        side, count, warm = (256, 2, 0.0) if self.tiny else (8192, 20, 0.5)
        left, right = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))

        def products() -> None:
            for _ in range(count):
                left @ right

        while warm > 0:
            warm -= self._once(products)
        return 2 * count * side**3 / self.seconds(products)[0]


Figures = Callable[[Setup], Iterator[Figure]]


def main(figures: Figures, about: str) -> list[Figure]:
    """Runs a script: prints each figure as it comes and all in a table, and keeps the JSON file up to date.

    Exits with 2 and one line where there is no GPU, with 1 where a figure is one of `Setup.guarded`'s.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU where there is no GPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go, as in bench.json")
    parser.add_argument("--images", metavar="DIR", help="JPEGs to label; without it crops of the sample photos")
    asked = parser.parse_args()
    if not (asked.tiny or torch.cuda.is_available()):
        print("expected a GPU; found none; --tiny runs on a CPU", file=sys.stderr)
        sys.exit(2)
    width = None if sys.stdout.isatty() else 200
    console, found = Console(soft_wrap=True, highlight=False, markup=False, width=width), list[Figure]()
    console.print(surroundings())
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="sea-pipeline-gpu-") as scratch:
        for figure in figures(Setup(device, asked.tiny, asked.images, Path(scratch))):
            found.append(figure)
            console.print(f"{figure.name} {figure.value:.3g} {figure.unit}")
            if asked.json:
                asked.json.write_text(as_text({one.name: as_json(one, machine(device)) for one in found}))
    console.print(table(found, machine(device)))
    if any(figure.name.endswith(FAILED) for figure in found):
        sys.exit(1)
    return found


def surroundings() -> str:
    """The machine in one line. The driver's tool is asked: torch would begin to use the GPU before `label` forks."""
    gpu, asked = "no nvidia-smi", "--query-gpu=name,driver_version,memory.free,memory.total"
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", asked, "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        gpu = " | ".join((done.stdout or done.stderr).split("\n")).strip(" |")
    memory = Path("/proc/meminfo")
    free = next((line for line in memory.read_text().split("\n") if line.startswith("MemAvailable")), "")
    shared = f"{shutil.disk_usage('/dev/shm').free / 2**30:.1f} GiB" if Path("/dev/shm").exists() else "none"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {version('transformers')}"
    allocator = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "as it comes")
    free = " ".join(free.split()) or "MemAvailable: not known"
    return f"{gpu}; {versions}; {cores()} cores; {free}; /dev/shm free: {shared}; CUDA allocator: {allocator}"


def as_text(figures: dict[str, Any]) -> str:
    """The JSON file; a value that is not finite is null there."""
    for figure in figures.values():
        if figure["value"] is not None and not math.isfinite(figure["value"]):
            figure["value"] = None
    return json.dumps(figures, indent=2, allow_nan=False) + "\n"


def table(figures: list[Figure], where: str) -> Table:
    """The figures side by side with what they are beside."""
    shown = Table("figure", "value", "beside", title=where, title_justify="left", box=None)
    for figure in figures:
        shown.add_row(figure.name, f"{figure.value:.3g} {figure.unit}", figure.baseline)
    return shown

"""What the scripts share: their options, time and memory on a device, a table and a JSON file."""

import argparse
import gc
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from tests.bench.measure import Figure, as_json, machine, peak_bytes

IMAGES = 558_128
"""LLaVA-1.5's data for stage 1."""


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
        for action in actions:
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
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        action()
        return torch.cuda.max_memory_allocated()

    def matmul_rate(self, dtype: torch.dtype) -> float:
        """FLOP/s of a product of two large square matrices of random numbers."""
        side = 256 if self.tiny else 8192
        left, right = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
        return 2 * side**3 / self.seconds(lambda: left @ right)[0]


Figures = Callable[[Setup], Iterator[Figure]]


def main(figures: Figures, about: str) -> list[Figure]:
    """Runs a script: prints each figure as it comes and all in a table, and keeps the JSON file up to date.

    Exits with 2 and one line where there is no GPU.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU where there is no GPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go, as in bench.json")
    parser.add_argument("--images", metavar="DIR", help="JPEGs to label; without it crops of the sample photos")
    asked = parser.parse_args()
    if not (asked.tiny or torch.cuda.is_available()):
        print("expected a GPU; found none; --tiny runs on a CPU", file=sys.stderr)
        sys.exit(2)
    console, found = Console(soft_wrap=True, highlight=False), list[Figure]()
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="sea-pipeline-gpu-") as scratch:
        for figure in figures(Setup(device, asked.tiny, asked.images, Path(scratch))):
            found.append(figure)
            console.print(f"{figure.name} {figure.value:.3g} {figure.unit}")
            if asked.json:
                asked.json.write_text(as_text({one.name: as_json(one, machine(device)) for one in found}))
    console.print(table(found, machine(device)))
    return found


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

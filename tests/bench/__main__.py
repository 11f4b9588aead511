"""`make bench`: runs every benchmark here, prints one table and writes bench.json."""

import importlib
import json
import os
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


def machine() -> str:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().split("\n") if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__}"


def main() -> None:
    """Runs the benchmarks one after the other."""
    console = Console(soft_wrap=True, highlight=False)
    found = {}
    table = Table("figure", "value", "beside", title=machine(), title_justify="left", box=None)
    for path in sorted(HERE.glob("bench_*.py")):
        for figure in importlib.import_module(f"tests.bench.{path.stem}").figures():
            console.print(f"{figure.name} {figure.value:.3g} {figure.unit}")
            table.add_row(figure.name, f"{figure.value:.3g} {figure.unit}", figure.baseline)
            found[figure.name] = {
                "value": figure.value,
                "unit": figure.unit,
                "baseline": figure.baseline,
                "machine": machine(),
            }
    console.print(table)
    Path("bench.json").write_text(json.dumps(found, indent=2) + "\n")


main()

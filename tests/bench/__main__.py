"""`make bench`: runs every benchmark here, prints one table and writes bench.json.

`python -m tests.bench workers label`: only bench_workers.py and bench_label.py; the other figures in the file stay.
"""

import argparse
import importlib
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.measure import as_json, machine

HERE = Path(__file__).parent


def main() -> None:
    """Runs the benchmarks one after the other."""
    there = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("names", nargs="*", help=", ".join(there))
    asked = parser.parse_args().names
    if unknown := set(asked) - set(there):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    console = Console(soft_wrap=True, highlight=False)
    written = Path("bench.json")
    found = json.loads(written.read_text()) if asked and written.is_file() else {}
    table = Table("figure", "value", "beside", title=machine(), title_justify="left", box=None)
    for name in asked or there:
        for figure in importlib.import_module(f"tests.bench.bench_{name}").figures():
            console.print(f"{figure.name} {figure.value:.3g} {figure.unit}")
            table.add_row(figure.name, f"{figure.value:.3g} {figure.unit}", figure.baseline)
            found[figure.name] = as_json(figure, machine())
    console.print(table)
    written.write_text(json.dumps(found, indent=2) + "\n")


main()

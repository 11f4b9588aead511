"""`make bench`: runs every benchmark here, prints one table and writes bench.json."""

import importlib
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.measure import as_json, machine

HERE = Path(__file__).parent


def main() -> None:
    """Runs the benchmarks one after the other."""
    console = Console(soft_wrap=True, highlight=False)
    found = {}
    table = Table("figure", "value", "beside", title=machine(), title_justify="left", box=None)
    for path in sorted(HERE.glob("bench_*.py")):
        for figure in importlib.import_module(f"tests.bench.{path.stem}").figures():
            console.print(f"{figure.name} {figure.value:.3g} {figure.unit}")
            table.add_row(figure.name, f"{figure.value:.3g} {figure.unit}", figure.baseline)
            found[figure.name] = as_json(figure, machine())
    console.print(table)
    Path("bench.json").write_text(json.dumps(found, indent=2) + "\n")


main()

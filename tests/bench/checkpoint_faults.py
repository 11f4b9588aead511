"""Checkpoints damaged on purpose, and disks that fill: `python -m tests.bench.checkpoint_faults [--tmpfs FOLDER]`

A run of six steps is killed at the fourth. Each kind of damage is done to its newest checkpoint, then to both; the same
command is given again, and what comes out is compared with a run that nothing happened to. With `--tmpfs`, the mount
point of a small file system (`mount -t tmpfs -o size=1m tmpfs FOLDER`), the disk also fills at every few kilobytes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sea_pipeline.core.errors import UserError
from tests.support.heard import Heard
from tests.support.run_values import HARMS, PARTS, values, weights
from tests.support.tiny_runs import colours, make_world, tiny_recipe
from trainer.model import checkpoints
from trainer.recipes.recipe import Recipe
from trainer.training.run import train

Lines = list[str]
"""What was said in place of training, each once."""


def main() -> None:
    """Does every damage and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tmpfs", type=Path)
    given = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    table, lines = Table("damage", "to the newest", "to both", box=None), Lines()
    with tempfile.TemporaryDirectory(prefix="checkpoints-") as scratch, colours():
        root = Path(scratch)
        os.environ["SEA_PIPELINE_CACHE"] = str(root / "cache")
        world = make_world(root)
        recipe = tiny_recipe(
            world,
            loss={"sea": {"weight": "auto"}, "measure_every": 1},
            training_arguments={"max_steps": 6, "save_steps": 1, "save_total_limit": 2},
        )
        whole = train(recipe, root / "whole").out
        killed = _killed(root, recipe)
        for part, file in PARTS.items():
            for harm in ("cut", "emptied", "gone"):
                cells = [_after(recipe, killed, whole, file, harm, newest, lines) for newest in (1, 2)]
                table.add_row(f"{part} {harm}", *cells)
        if given.tmpfs:
            _fill(given.tmpfs, recipe, whole, table, lines)
    console.print(table)
    for number, line in enumerate(lines):
        console.print(f"({number})", line, markup=False)


def _killed(root: Path, recipe: Recipe) -> Path:
    (root / "recipe.json").write_text(recipe.model_dump_json())
    command = [
        sys.executable,
        "-m",
        "tests.support.tiny_runs",
        str(root / "recipe.json"),
        str(root / "killed"),
        "log",
        "4",
    ]
    done = subprocess.run(command, check=False, capture_output=True)
    steps = sorted(path.name for path in (root / "killed" / "checkpoints").iterdir())
    assert (done.returncode, steps) == (-9, ["checkpoint-2", "checkpoint-3"]), (done, steps)
    return root / "killed"


def _after(recipe: Recipe, killed: Path, whole: Path, file: str, harm: str, count: int, lines: Lines) -> str:
    """What comes of the same command after damage to the newest `count` checkpoints."""
    out = shutil.copytree(killed, killed.parent / "out")
    for step in (3, 2)[:count]:
        HARMS[harm](out / "checkpoints" / f"checkpoint-{step}" / file)
    found = _again(recipe, out, whole, lines)
    shutil.rmtree(out)
    return found


def _again(recipe: Recipe, out: Path, whole: Path, lines: Lines) -> str:
    said: list[str] = []
    try:
        train(recipe, out, reporter=Heard(said))
    except UserError as problem:
        line = str(problem).replace(f"{out}/", "")
        if line not in lines:
            lines.append(line)
        return f"one line ({lines.index(line)})" if "\n" not in line else "SEVERAL LINES"
    same = weights(out) == weights(whole) and values(out) == values(whole)
    begun = next((line.rpartition("/")[2] for line in said if line.startswith("going on from")), "the start")
    return f"{'the same bytes' if same else 'OTHER WEIGHTS'}, from {begun}"


def _fill(tmpfs: Path, recipe: Recipe, whole: Path, table: Table, lines: Lines) -> None:
    """A file takes all but some kilobytes of the disk, then goes."""
    for room in range(4, 200, 8):
        out, ballast = tmpfs / "out", tmpfs / "ballast"
        shutil.rmtree(out, ignore_errors=True)
        ballast.write_bytes(bytes(shutil.disk_usage(tmpfs).free - room * 1024))
        first = _again(recipe, out, whole, lines)
        folder = out / "checkpoints"
        left = [checkpoints.step_of(path) for path in folder.glob("checkpoint-*")]
        half = checkpoints.unfinished(folder).exists()
        ballast.unlink()
        second = _again(recipe, out, whole, lines)
        first += f", checkpoints {sorted(left)}{' AND A HALF ONE' if half else ''}"
        table.add_row(f"{room} kB left", first, f"then room: {second}")


if __name__ == "__main__":
    main()

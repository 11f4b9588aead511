"""What can go wrong with many workers, done on purpose and counted: `python -m tests.bench.faults`

The stage is the tests' (a row drawn from each image's name, one image in ten bad), so that what is tried is everything
but a model: planning, workers, shards, commits, manifest. After each fault the command that was hit is run again, as a
user would, and the folder is compared with one that a single process made without faults.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from sea_pipeline.execution.local import run
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from tests.bench.damage import FAULTS
from tests.bench.fault_runs import IMAGES, SHARD_SIZE
from tests.support.worker_world import PlantedStage, hash_of, planted_ledger


class Counts(NamedTuple):
    """What is wrong with a folder; zeros are good."""

    lost: int
    """Planned images that are neither a row nor in quarantine."""
    twice: int
    partial: int
    """Files outside `.tmp` that no record names, or that differ from their record."""
    other: int
    """Files whose bytes are not those of the run without faults."""


def main() -> None:
    """Runs every fault and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of workers; of drivers and schedulers a quarter")
    parser.add_argument("--only", default="", help="faults whose names hold this")
    given = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    table = Table("fault", "times", "lost", "twice", "partial", "other bytes", "what was seen", box=None)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        whole = planted_ledger(Path(scratch) / "whole", IMAGES, SHARD_SIZE)
        run(whole, PlantedStage(Path(scratch) / "none"), max_bad=1)
        for fault in FAULTS:
            name = fault.__name__.replace("_", " ")
            if given.only in name:
                folder = Path(scratch) / fault.__name__
                folder.mkdir()
                times, seen = fault(folder, given.kills)
                counts = [counted(Ledger.open(out), whole) for out in sorted(folder.glob("out*"))]
                sums = [str(sum(column)) for column in zip(*counts, strict=True)]
                console.print(name, times, *sums, seen)
                table.add_row(name, str(times), *sums, seen)
    console.print(table)


def counted(ledger: Ledger, whole: Ledger) -> Counts:
    """Looks at every file of a folder that should be finished."""
    there: Counter[str] = Counter(item["image_id"] for item in ledger.quarantined())
    for commit in ledger.commits():
        rows = pq.read_table(ledger.shard_path(commit.shard)).to_pylist()
        there.update(row["image_id"] for row in rows if row["value"] == hash_of(row["image_id"]))
    planned = {sample.image_id for shard in range(ledger.dataset.shards) for sample in ledger.samples(shard)}
    checked = check_files(ledger)
    named = {file.path for file in checked.files}
    stray = _contents(ledger.root).keys() - named - {"manifest.json", "dataset.json"}
    ours, theirs = _contents(ledger.root), _contents(whole.root)
    other = sum(ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys())
    wrong = len(stray) + len(checked.problems)
    return Counts(len(planned - there.keys()), sum(there.values()) - len(there), wrong, other)


def _contents(root: Path) -> dict[str, bytes]:
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    skipped = ("commits/", "logs/", ".tmp/")
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(skipped)}


if __name__ == "__main__":
    main()

"""What the order of a table's ids costs: `python -m tests.bench.table_order`

The same photos in Parquet files whose ids sort as the rows lie (zero-padded numbers), as text sorts numbers, and in no
order at all, labelled in turn. The encoder is the tests', so that reading, decoding and writing are what is measured.
Every run is a process of its own.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.run import LabelSettings, label_images
from tests.bench.bench_label import crops
from tests.bench.measure import machine
from tests.bench.scale import FineColours
from tests.support.memory import READY, measured
from tests.support.world import COLOURS, word_file

IDS: dict[str, Callable[[list[int]], list[Any]]] = {
    "padded": lambda rows: [f"{row:09d}" for row in rows],
    "integers": list,
    "file names": lambda rows: [f"{row}.jpg" for row in rows],
    "shuffled": lambda rows: random.Random(0).sample([f"{row:09d}" for row in rows], len(rows)),
}


def main() -> None:
    """Writes the tables, labels them in turn, prints rates and peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--group", type=int, default=100, help="rows of a row group; datasets writes 100")
    parser.add_argument("--shard-size", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ids", nargs="*", default=list(IDS), choices=IDS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="table-order-") as scratch:
        root = Path(scratch)
        size = _write(root, given.ids, given.rows, given.group)
        found: dict[str, list[_Run]] = {name: [] for name in given.ids}
        for repeat in range(given.repeats):
            for name in given.ids:
                found[name].append(_run(root / name, root / f"{name} {repeat}", given.shard_size))
    table = Table("ids", "images/s", "a CPU second", "peak MB", title=f"{machine()}; {size:,} bytes an image")
    base = found[given.ids[0]]
    for name, runs in found.items():
        cells = [_beside(given.rows, [run[part] for run in runs], [run[part] for run in base]) for part in range(2)]
        table.add_row(name, *cells, ", ".join(f"{run.peak / 1e6:,.0f}" for run in runs))
    Console(soft_wrap=True, highlight=False).print(table)


class _Run(NamedTuple):
    seconds: float
    cpu: float
    """Seconds of all threads: other programs on the machine change them less."""
    peak: int


def _run(table: Path, out: Path, shard_size: int) -> _Run:
    peak = measured("-m", "tests.bench.table_order", "--as-child", str(table), str(out), str(shard_size)).peak
    return _Run(*json.loads(Path(f"{out}.json").read_text()), peak)


def _beside(rows: int, seconds: list[float], base: list[float]) -> str:
    rate, other = rows / statistics.median(seconds), rows / statistics.median(base)
    return f"{rate:,.0f} ({rate / other:.2f})"


def _write(root: Path, names: list[str], rows: int, group: int) -> int:
    photos = [path.read_bytes() for path in sorted(crops(root / "photos", 64).iterdir())]
    for name in names:
        ids = pa.array(IDS[name](list(range(rows))))
        schema = pa.schema([("id", ids.type), ("image", pa.binary())])
        with pq.ParquetWriter(root / name, schema, use_dictionary=False) as writer:
            for start in range(0, rows, group):
                here = range(start, min(rows, start + group))
                images = pa.array([photos[row % len(photos)] for row in here], pa.binary())
                writer.write_table(pa.table([ids[start : start + group], images], writer.schema), row_group_size=group)
        (root / name).rename(root / f"{name}.parquet")
    return sum(map(len, photos)) // len(photos)


def _child(table: str, out: str, shard_size: str) -> None:
    label_run.load_encoder = lambda spec, device, options: FineColours()  # type: ignore[assignment]
    torch.set_num_threads(1)
    words = word_file(Path(out).with_suffix(".txt"))
    settings = LabelSettings.of(
        images=f"{table}.parquet",
        out=out,
        wordlist=str(words),
        top_n=len(COLOURS),
        shard_size=int(shard_size),
        probe=False,
    )
    exec(READY)
    begun = time.perf_counter(), time.process_time()
    label_images(settings)
    Path(f"{out}.json").write_text(json.dumps([time.perf_counter() - begun[0], time.process_time() - begun[1]]))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    if sys.argv[1:2] == ["--as-child"]:
        _child(*sys.argv[2:])
    else:
        main()

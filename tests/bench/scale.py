"""Labels very many images: do time and memory stay flat? `python -m tests.bench.scale PHOTOS --count 100000`

The images are links to the photos of a folder; the encoder is the tests' (mean colours, here on 14 x 14 patches), so
that listing, planning, decoding, writing and reading are what is measured. Every step is a command of its own.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from sea_pipeline import open_labels
from sea_pipeline.encoders import Preprocess
from sea_pipeline.label_cache import label_cache
from sea_pipeline.labels import run as label_run
from sea_pipeline.output.ledger import Ledger
from tests.support import world


class FineColours(world.ColourEncoder):
    """The tiny world's encoder on the grid of a real one."""

    grid = (14, 14)
    preprocess = Preprocess(size=224)

    def patches(self, pixels: Any) -> Any:
        cells = pixels.float().view(len(pixels), 14, 16, 14, 16, 3).mean((2, 4)).flatten(1, 2) / 127.5 - 1
        return cells / cells.norm(dim=-1, keepdim=True).clamp(min=1e-6)


def links(photos: Path, folder: Path, count: int) -> None:
    """`count` names for the photos of a folder, 1,000 a subfolder."""
    sources = sorted(path.resolve() for path in photos.rglob("*.jp*g"))
    for number in range(count):
        path = folder / f"{number // 1000:04d}" / f"{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(sources[number % len(sources)])


def program(*arguments: object) -> list[str]:
    """The command line as a process of its own."""
    return [sys.executable, "-m", "tests.bench.scale", "--as-command", *map(str, arguments)]


def killed(out: Path, done: int, *arguments: object) -> int:
    """Runs it until so many shards are done, then kills it; how many are."""
    child = subprocess.Popen(program(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list((out / "commits").glob("*"))) < done and child.poll() is None:
        time.sleep(0.05)
    child.kill()
    child.wait()
    return len(list((out / "commits").glob("*")))


def command(*arguments: object) -> float:
    """Runs it to its end; the seconds that it took."""
    begun = time.perf_counter()
    done = subprocess.run(program(*arguments), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - begun


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = action()
    return time.perf_counter() - begun, result


def rows_per_second(store: Any, ids: list[str]) -> float:
    seconds, _ = timed(lambda: [store[image_id] for image_id in ids])
    return len(ids) / seconds


def figures(photos: Path, count: int, workers: int, kills: int) -> Iterator[tuple[str, str]]:
    """Names and values, in the order in which a run comes to them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "images", Path(scratch) / "labels"
        links(photos, folder, count)
        words = Path(scratch) / "words.txt"
        words.write_text("".join(f"word{number}\n" for number in range(1000)))
        asked = ("label", "--images", folder, "--wordlist", words, "--out", out, "--shard-size", 1024)
        asked += ("--workers", workers) if workers else ()
        if kills:
            shards = -(-count // 1024)
            done = [killed(out, shards * number // (kills + 1), *asked) for number in range(1, kills + 1)]
            yield "killed, with so many shards done", f"{', '.join(map(str, done))} of {shards}"
        yield "label", f"{command(*asked):,.0f} s for {count:,} images" + (" but for those shards" if kills else "")
        commits = sorted(Ledger.open(out).commits(), key=lambda commit: commit.shard)
        spent = [sum(share for part, share in commit.seconds.items() if part != "decode") for commit in commits]
        tenth = max(1, len(commits) // 10)
        ends = [statistics.median(part) for part in (spent[:tenth], spent[-1 - tenth : -1])]
        yield "encode + search + write, first to last tenth of the shards", f"{ends[0]:.2f} to {ends[1]:.2f} s a shard"
        peaks = [commit.peak_memory_bytes / 1e6 for commit in commits]
        yield (
            "peak memory after the first shard, a tenth, all",
            ", ".join(f"{peak:,.0f}" for peak in (peaks[0], peaks[tenth], peaks[-1])) + " MB",
        )
        yield "the same command again, finished", f"{command(*asked):.1f} s"
        size = sum(file.stat().st_size for file in out.rglob("*.parquet"))
        seconds = command("verify", out)
        yield "verify", f"{seconds:.1f} s, {size / seconds / 1e6:,.0f} MB/s with starting Python"
        rows = Counter(pq.read_table(out / "labels", columns=["image_id"])["image_id"].to_pylist())
        yield "images there; there twice", f"{len(rows):,}; {rows.total() - len(rows)}"
        opening, store = timed(lambda: open_labels(out))
        quick, _ = timed(lambda: open_labels(out, verify=False))
        yield "open_labels, hashing every shard; not hashing", f"{opening:.2f}, {quick:.2f} s"
        ids = random.Random(0).sample(list(store.ids), min(count, 2000))
        parquet = rows_per_second(store, ids[:200])
        making, cache = timed(lambda: label_cache(store, Path(scratch) / "cache"))
        rows_per_second(cache, ids[:10])
        yield "random rows, Parquet; memory-mapped", f"{parquet:,.0f}; {rows_per_second(cache, ids):,.0f} /s"
        yield "making the memory-mapped arrays", f"{making:.1f} s"


def main() -> None:
    if sys.argv[1:2] == ["--as-command"]:
        label_run.load_encoder = lambda spec, device, options: FineColours()  # type: ignore[assignment]
        sys.argv[1:] = sys.argv[2:]
        from sea_pipeline import cli

        cli.main()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0, help="SIGKILL of label, evenly over its shards")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    os.environ["SEA_PIPELINE_CACHE"] = tempfile.mkdtemp()
    found = {}
    for name, value in figures(asked.photos, asked.count, asked.workers, asked.kills):
        print(f"{name}: {value}", flush=True)
        found[name] = value
    table = Table("figure", "value", box=None)
    for row in found.items():
        table.add_row(*row)
    Console().print(table)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

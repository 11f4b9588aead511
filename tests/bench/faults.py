"""What can go wrong with many workers, done on purpose and counted: `python -m tests.bench.faults`

The stage is the tests' (a row drawn from each image's name, one image in ten bad), so that what is tried is everything
but a model: planning, workers, shards, commits, manifest. After each fault the command that was hit is run again, as a
user would, and the folder is compared with one that a single process made without faults.
"""

import argparse
import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from sea_pipeline import driver, workers
from sea_pipeline.clusters import Cluster, Existing, LocalCluster
from sea_pipeline.dask_clusters import connected
from sea_pipeline.driver import Driver, stage_plugin
from sea_pipeline.errors import UserError
from sea_pipeline.ledger import Ledger
from sea_pipeline.run import run
from sea_pipeline.storage import sweep
from sea_pipeline.worker_pool import WorkerPool
from tests.kills import descendants
from tests.worker_world import PlantedRecipe, PlantedStage, hash_of, plant_fault, planted_ledger

IMAGES, SHARD_SIZE = 240, 4
SECONDS = 0.1
"""That a shard takes."""


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
    parser.add_argument("--drive", nargs=3, help=argparse.SUPPRESS)  # the child of some faults: OUT FAULTS SCHEDULER
    given = parser.parse_args()
    if given.drive:
        _drive(*given.drive)
        return
    console = Console(soft_wrap=True, highlight=False)
    table = Table("fault", "times", "lost", "twice", "partial", "other bytes", "what was seen", box=None)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        whole = planted_ledger(Path(scratch) / "whole", IMAGES, SHARD_SIZE)
        run(whole, PlantedStage(Path(scratch) / "none"), max_bad=1)
        for fault in (workers_killed, scheduler_killed, driver_killed, hang, poison, disk_full, two_drivers):
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
    files, problems = ledger.check()
    named = {file.path for file in files}
    stray = _contents(ledger.root).keys() - named - {"manifest.json", "dataset.json"}
    ours, theirs = _contents(ledger.root), _contents(whole.root)
    other = sum(ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys())
    return Counts(len(planned - there.keys()), sum(there.values()) - len(there), len(stray) + len(problems), other)


def _contents(root: Path) -> dict[str, bytes]:
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    skipped = ("commits/", "logs/", ".tmp/")
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(skipped)}


def workers_killed(folder: Path, kills: int) -> tuple[int, str]:
    """SIGKILL of a random worker at random moments of one run after the other."""
    random_ = random.Random(0)
    killed = again = failed = 0
    while killed < kills:
        out = folder / f"out{killed}"
        child, seen = _child(out, folder / "none"), 0
        while child.poll() is None and killed < kills:
            time.sleep(0.1)
            if (done := len(list((out / "commits").glob("*.json")))) <= seen:
                continue  # workers that are killed while they load, one after the other, end a run
            time.sleep(random_.uniform(0.0, 1.0))
            if begun := [pid for pid in descendants(child.pid) if _is_worker(pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random_.choice(begun), signal.SIGKILL)
                    killed, seen = killed + 1, done + 2
        child.communicate()
        ledger = Ledger.open(out)
        again += sum(commit.attempt > 1 for commit in ledger.commits())
        failed += len(ledger.missing())
        alone(str(out))
    return killed, f"{again} shards done again, {failed} failed"


def scheduler_killed(folder: Path, kills: int) -> tuple[int, str]:
    """SIGKILL of somebody else's scheduler; a new one, and the same command again."""
    random_, times, messages = random.Random(1), max(1, kills // 4), Counter[str]()
    for number in range(times):
        out = folder / f"out{number}"
        with _scheduler(folder / f"scheduler{number}.json") as (address, process):
            child = _child(out, folder / "none", address)
            _begun(child, out)
            time.sleep(random_.uniform(0.0, 1.0))
            process.kill()
            said = child.communicate()[1]
            messages["the scheduler is gone" in said and child.returncode == 1 and "Traceback" not in said] += 1
        with _scheduler(folder / f"again{number}.json") as (address, _):
            _child(out, folder / "none", address).communicate()
    return times, f"{messages[True]} of {times} said so in one line"


def driver_killed(folder: Path, kills: int) -> tuple[int, str]:
    """SIGKILL of the command; its workers must go, and the command be run again."""
    random_, times, left = random.Random(2), max(1, kills // 4), 0
    for number in range(times):
        out = folder / f"out{number}"
        child = _child(out, folder / "none")
        _begun(child, out)
        time.sleep(random_.uniform(0.0, 2.0))
        begun = descendants(child.pid)
        child.kill()
        child.communicate()
        time.sleep(5)
        left += sum(Path(f"/proc/{pid}").exists() for pid in begun)
        alone(str(out))
    return times, f"{left} processes left after 5 s"


def hang(folder: Path, kills: int) -> tuple[int, str]:
    """A shard that hangs once, and one that always does."""
    plant_fault(folder / "faults", 3, "hang")
    plant_fault(folder / "faults", 8, *["hang"] * 99)
    child = _child(folder / "out", folder / "faults")
    child.communicate()
    missing = Ledger.open(folder / "out").missing()
    alone(str(folder / "out"))
    return 1, f"exit {child.returncode}, failed: {missing}"


def poison(folder: Path, kills: int) -> tuple[int, str]:
    """A shard that kills every worker."""
    plant_fault(folder / "faults", 5, *["kill"] * 99)
    child = _child(folder / "out", folder / "faults")
    child.communicate()
    ledger = Ledger.open(folder / "out")
    words = len((folder / "faults" / "5").read_text().split())
    innocents = sum(commit.attempt > 1 for commit in ledger.commits())
    missing = ledger.missing()
    alone(str(folder / "out"))
    return 1, f"exit {child.returncode}, failed: {missing}, {99 - words} workers lost, {innocents} others done again"


def disk_full(folder: Path, kills: int) -> tuple[int, str]:
    """Each file may have so many bytes at most: writes of data, commits, plan or manifest fail half-way."""
    random_, times, told = random.Random(3), max(1, kills // 4), 0
    for number in range(times):
        limit = random_.choice([300, 700, 900, 1100, 1600, 2500])

        code = f"from tests.bench.faults import alone; alone({str(folder / f'out{number}')!r}, {limit})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        told += done.returncode == 0 or "cannot be written: File too large" in done.stderr
        alone(str(folder / f"out{number}"))
    return times, f"{told} of {times} said so in one line, or had room enough"


def two_drivers(folder: Path, kills: int) -> tuple[int, str]:
    """Two commands with workers of their own on one folder at once."""
    planted_ledger(folder / "out", IMAGES, SHARD_SIZE)
    both = [_child(folder / "out", folder / "none") for _ in range(2)]
    for child in both:
        child.communicate()
    return 1, f"exits {[child.returncode for child in both]}"


def alone(out: str, limit: int | None = None) -> None:
    """One process, no workers; with files of `limit` bytes at most, as on a disk that gets full."""
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    run(_begun_ledger(Path(out)), PlantedStage(Path("none")), max_bad=1)


def _drive(out: str, faults: str, scheduler: str) -> None:
    cluster: Cluster = Existing(address=scheduler) if scheduler else LocalCluster(workers=2)
    ledger = _begun_ledger(Path(out))
    recipe = PlantedRecipe(Path(faults), SECONDS)
    try:
        with (
            driver._terminated_as_interrupted(),
            stage_plugin(recipe, ledger) as plugin,
            connected(cluster, dashboard=False, say=print) as client,
        ):
            pool = WorkerPool(client, plugin, workers.ready, start_timeout=120, say=print)
            with pool.open():
                report = Driver(pool, ledger, max_bad=1, shard_timeout=20).run()
    except UserError as problem:
        print(problem, file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(2 if report.failed else 0)


def _begun_ledger(out: Path) -> Ledger:
    """A folder that is begun, or gone on with: there are no image files that `begin` could compare."""
    if not (out / "dataset.json").is_file():
        return planted_ledger(out, IMAGES, SHARD_SIZE)
    sweep(out)
    return Ledger.open(out)


def _child(out: Path, faults: Path, scheduler: str = "") -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.bench.faults", "--drive", str(out), str(faults), scheduler]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@contextlib.contextmanager
def _scheduler(file: Path) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """A scheduler and two workers of somebody else."""
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    begin = [sys.executable, "-m", "distributed.cli.dask_scheduler", *common, "--port", "0", "--host", "127.0.0.1"]
    more = [sys.executable, "-m", "distributed.cli.dask_worker", *common, "--nthreads", "1", "--nworkers", "2"]
    begun = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in (begin, more)]
    try:
        while not file.is_file():
            time.sleep(0.1)
        yield str(file), begun[0]
    finally:
        for process in reversed(begun):
            process.terminate()
            process.wait()


def _begun(child: "subprocess.Popen[str]", out: Path) -> None:
    while child.poll() is None and not any((out / "commits").glob("*")):
        time.sleep(0.1)


def _is_worker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


if __name__ == "__main__":
    main()

"""The runs that `damage` hits: a planted stage by this process, by a command with workers, by one elsewhere."""

import contextlib
import datetime
import resource
import signal
import subprocess
import sys
import time
import types
import uuid
from collections.abc import Iterator
from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.execution import driver, worker
from sea_pipeline.execution.cluster_settings import Cluster, ExistingCluster, LocalCluster
from sea_pipeline.execution.dask_clusters import connected
from sea_pipeline.execution.driver import Driver, stage_plugin
from sea_pipeline.execution.local import run
from sea_pipeline.execution.worker_pool import WorkerPool
from sea_pipeline.output import ledger
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage import publish
from sea_pipeline.storage.paths import Place, place
from sea_pipeline.storage.publish import sweep
from sea_pipeline.storage.scratch import host
from tests.support.heard import Printing
from tests.support.kills import DEAD
from tests.support.worker_world import PlantedJob, PlantedStage, planted_ledger

IMAGES, SHARD_SIZE = 240, 4
SECONDS = 0.1
"""That a shard takes."""


def alone_elsewhere(out: str, days_behind: int) -> None:
    """`alone`, by a machine with this one's name but other processes, and with a clock of its own."""

    class Behind(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Behind":
            return super().now(tz) - datetime.timedelta(days=days_behind)

    publish.scratch_name = lambda name: f"{name}.{host()}.{DEAD}.{uuid.uuid4().hex[:8]}"
    ledger.datetime = types.SimpleNamespace(datetime=Behind, UTC=datetime.UTC)  # type: ignore[attr-defined]
    alone(out, seconds=0.01)


def alone(out: str, limit: int | None = None, seconds: float = 0) -> None:
    """One process, no workers; with files of `limit` bytes at most, as on a disk that gets full."""
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    run(begun_ledger(place(out)), PlantedStage(Path("none"), seconds), max_bad=1)


def drive(out: str, faults: str, scheduler: str) -> None:
    cluster: Cluster = ExistingCluster(address=scheduler) if scheduler else LocalCluster(workers=2)
    begun = begun_ledger(place(out))
    job = PlantedJob(Path(faults), SECONDS)
    try:
        with (
            driver._interrupted(),
            stage_plugin(job, begun) as plugin,
            connected(cluster, dashboard=False, reporter=Printing()) as client,
        ):
            pool = WorkerPool(client, plugin, worker.ready, start_timeout=120, reporter=Printing())
            with pool.open():
                report = Driver(pool, begun, max_bad=1, shard_timeout=20).run()
    except UserError as problem:
        print(problem, file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(2 if report.failed else 0)


def begun_ledger(out: Place) -> Ledger:
    """A folder that is begun, or gone on with: there are no image files that `open_or_create` could compare."""
    if not (out / "dataset.json").is_file():
        return planted_ledger(out, IMAGES, SHARD_SIZE)
    sweep(out)
    return Ledger.open(out)


def child_of(out: Path | str, faults: Path, scheduler: str = "") -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.bench.fault_runs", str(out), str(faults), scheduler]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@contextlib.contextmanager
def other_scheduler(file: Path) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
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


def wait_until_begun(child: "subprocess.Popen[str]", out: Path) -> None:
    while child.poll() is None and not any((out / "commits").glob("*")):
        time.sleep(0.1)


if __name__ == "__main__":
    drive(*sys.argv[1:])

"""Shards done by two workers of one cluster: the same folder as alone, whatever befalls the workers."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT
from sea_pipeline.execution import driver, worker, worker_pool
from sea_pipeline.execution.cluster_settings import LocalCluster
from sea_pipeline.execution.dask_clusters import connected
from sea_pipeline.execution.driver import Driver, stage_plugin
from sea_pipeline.execution.local import run
from sea_pipeline.execution.run_report import RunReport
from sea_pipeline.execution.worker_pool import WorkerPool
from sea_pipeline.inputs.samples import Sample, Version
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from tests.support.contents import content
from tests.support.heard import Heard
from tests.support.refused import refused
from tests.support.worker_world import PlantedJob, PlantedStage, forked_workers, plant_fault, planted_ledger

IMAGES, SHARDS, BAD = 23, 12, 2


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with forked_workers(), connected(LocalCluster(workers=2), dashboard=False, reporter=SILENT) as client:
        yield client


Work = Callable[..., RunReport]


@pytest.fixture
def work(client: Client, tmp_path: Path) -> Work:
    """Does a folder's shards by the two workers."""

    def work(ledger: Ledger, job: PlantedJob | None = None, shards: range | None = None, **given: Any) -> RunReport:
        said: list[str] = given.pop("said", [])
        with stage_plugin(job or PlantedJob(tmp_path / "faults"), ledger) as plugin:
            pool = WorkerPool(client, plugin, worker.ready, start_timeout=500, reporter=Heard(said))
            with pool.open():
                return Driver(pool, ledger, **({"max_bad": 0.5} | given)).run(shards)

    return work


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The folder as one process makes it."""
    ledger = planted_ledger(tmp_path / "whole")
    run(ledger, PlantedStage(tmp_path / "no faults"), max_bad=0.5)
    return content(ledger.root)


def logs(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "logs").glob("*"))


def test_workers_make_what_one_process_makes(work: Work, tmp_path: Path, whole: dict[str, bytes]) -> None:
    passed: list[int] = []
    for shard in (0, 1):  # by a worker each
        plant_fault(tmp_path / "faults", shard, "meet")
    ledger = planted_ledger(tmp_path / "out")
    report = work(ledger, advance=passed.append)
    assert (report.images, report.bad, report.failed, report.workers) == (IMAGES - BAD, BAD, {}, 2)
    assert sum(passed) == IMAGES
    assert len(passed) == SHARDS
    assert content(ledger.root) == whole
    assert len({commit.host for commit in ledger.commits()}) == 1
    assert not list((ledger.root / ".tmp").iterdir())
    assert work(ledger).images == 0


def test_workers_in_another_current_folder_find_a_relative_out(
    work: Work, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers were started before, elsewhere, as those of `--scheduler` are."""
    monkeypatch.chdir(tmp_path)
    ledger = planted_ledger(Path("runs") / "out")
    assert work(ledger).failed == {}
    assert ledger.root == Path("runs") / "out"
    assert content(tmp_path / "runs" / "out") == whole


def test_workers_without_gpus_see_none(client: Client) -> None:
    """On a machine that has some, every worker would take the first."""
    assert set(client.run(lambda: os.environ.get("CUDA_VISIBLE_DEVICES")).values()) == {""}


def test_commits_name_two_processes_that_are_not_this_one(client: Client, work: Work, tmp_path: Path) -> None:
    """Nothing of the stage stays on the workers when the run is over."""
    work(planted_ledger(tmp_path / "out"))
    held = client.run(lambda dask_worker: (os.getpid(), [name for name in dask_worker.plugins if "plant" in name]))
    assert len(held) == 2
    assert {plugins for _, plugins in ((pid, tuple(names)) for pid, names in held.values())} == {()}
    assert os.getpid() not in {pid for pid, _ in held.values()}


def test_a_worker_that_is_killed_costs_nothing(work: Work, tmp_path: Path, whole: dict[str, bytes]) -> None:
    plant_fault(tmp_path / "faults", 4, "kill")
    ledger = planted_ledger(tmp_path / "out")
    report = work(ledger)
    assert report.failed == {}
    assert report.images == IMAGES - BAD
    assert content(ledger.root) == whole
    assert {commit.shard: commit.attempt for commit in ledger.commits() if commit.attempt > 1} == {4: 2}
    assert logs(ledger.root) == ["00004-attempt-1.log"]
    assert "died: killed" in (ledger.root / "logs" / "00004-attempt-1.log").read_text()


def test_a_shard_that_kills_every_worker_fails_alone(work: Work, tmp_path: Path, whole: dict[str, bytes]) -> None:
    plant_fault(tmp_path / "faults", 9, *["kill"] * 9)
    ledger = planted_ledger(tmp_path / "out")
    report = work(ledger)
    assert list(report.failed) == [9]
    assert "died: killed" in report.failed[9]
    assert "00009-attempt-3.log" in report.failed[9]
    assert (tmp_path / "faults" / "9").read_text().split() == ["kill"] * 6, "it may kill three workers"
    assert ledger.missing() == [9]
    assert not ledger.finished
    assert {commit.attempt for commit in ledger.commits()} == {1}, "no other shard pays for it"
    (tmp_path / "faults" / "9").unlink()
    assert work(ledger).images == 2
    assert content(ledger.root) == whole


def test_a_shard_that_hangs_is_ended_and_tried_once_more(work: Work, tmp_path: Path, whole: dict[str, bytes]) -> None:
    plant_fault(tmp_path / "faults", 2, "hang")
    plant_fault(tmp_path / "faults", 5, "hang", "hang", "hang")
    ledger = planted_ledger(tmp_path / "out")
    report = work(ledger, shard_timeout=10)
    assert list(report.failed) == [5]
    assert "--shard-timeout 10" in report.failed[5]
    assert (tmp_path / "faults" / "5").read_text() == "hang"
    assert ledger.missing() == [5]
    (tmp_path / "faults" / "5").unlink()
    work(ledger)
    assert content(ledger.root) == whole


def test_an_exception_is_tried_twice(work: Work, tmp_path: Path, whole: dict[str, bytes]) -> None:
    plant_fault(tmp_path / "faults", 1, "raise")
    plant_fault(tmp_path / "faults", 8, "raise", "raise")
    ledger = planted_ledger(tmp_path / "out")
    report = work(ledger)
    assert list(report.failed) == [8]
    assert "RuntimeError: shard 8 fails" in report.failed[8]
    assert logs(ledger.root) == ["00001-attempt-1.log", "00008-attempt-1.log", "00008-attempt-2.log"]
    assert "Traceback" in (ledger.root / "logs" / "00008-attempt-2.log").read_text()
    work(ledger)
    assert content(ledger.root) == whole


def test_what_the_user_can_mend_ends_the_run_and_keeps_what_is_done(work: Work, tmp_path: Path) -> None:
    plant_fault(tmp_path / "faults", 6, "refuse")
    ledger = planted_ledger(tmp_path / "out")
    with pytest.raises(UserError, match=r"^shard 6: the disk is full$"):
        work(ledger)
    done = {commit.shard for commit in ledger.commits()}
    assert len(done & set(range(6))) >= 5, "all before it, but for what the other worker was at"
    assert not list((ledger.root / ".tmp").glob("workers.*"))
    assert work(ledger).failed == {}


def test_max_bad_counts_over_all_workers(work: Work, tmp_path: Path) -> None:
    ledger = planted_ledger(tmp_path / "out")
    with pytest.raises(UserError, match=r"2 of 23 images are bad so far, more than --max-bad 0\.05 allows"):
        work(ledger, max_bad=0.05)
    assert not ledger.finished


def test_a_worker_that_would_make_something_else_is_refused(work: Work, tmp_path: Path) -> None:
    job = PlantedJob(tmp_path / "faults", fields={"planted": 2})
    ledger = planted_ledger(tmp_path / "out")
    with pytest.raises(UserError, match=r"would make other planted; .* Differing: planted: 1 there, 2 on the worker"):
        work(ledger, job)
    assert list(ledger.commits()) == []


def test_a_worker_that_sees_another_folder_is_refused(client: Client, tmp_path: Path) -> None:
    client.run(_see_for, 0.1)
    ledger = planted_ledger(tmp_path / "out")
    with stage_plugin(PlantedJob(tmp_path / "faults"), ledger) as plugin:
        assert plugin._visible_file is not None
        plugin._visible_file.unlink()  # as on a host that has a folder of that name of its own
        pool = WorkerPool(client, plugin, worker.ready, start_timeout=500, reporter=SILENT)
        with pool.open(), pytest.raises(UserError, match="does not see the folder that the run writes to; give --out"):
            Driver(pool, ledger, max_bad=0.5).run()
    client.run(_see_for, 10)


def _see_for(seconds: float) -> None:
    worker._SEEN_SECONDS = seconds  # type: ignore[assignment]


def test_a_model_that_does_not_load_is_one_line(work: Work, tmp_path: Path) -> None:
    said: list[str] = []
    with refused(match=r"no worker can work: .*MemoryError: the model is too .* raise its limits .* \(see .*worker-"):
        work(planted_ledger(tmp_path / "out"), PlantedJob(tmp_path, loading="raise"), said=said)
    assert said
    assert any(name.startswith("worker-") for name in logs(tmp_path / "out"))


def test_workers_that_die_while_they_load_are_one_line(work: Work, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 workers one after the other have died while they loaded the model"):
        work(planted_ledger(tmp_path / "out"), PlantedJob(tmp_path, loading="kill"))


def test_no_worker_is_one_line(tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = planted_ledger(tmp_path / "out")
    monkeypatch.setattr(WorkerPool, "_there", lambda self: set())
    with stage_plugin(PlantedJob(tmp_path / "faults"), ledger) as plugin:
        pool = WorkerPool(client, plugin, worker.ready, start_timeout=2, reporter=SILENT)
        with pool.open(), pytest.raises(UserError, match="no worker has come for 2 s; see that the cluster starts"):
            Driver(pool, ledger, max_bad=0.5).run()


def test_ranges_divide_the_work_and_the_last_one_finishes(work: Work, tmp_path: Path, whole: dict[str, bytes]) -> None:
    ledger = planted_ledger(tmp_path / "out")
    work(ledger, shards=range(6, 12))
    assert ledger.missing() == [0, 1, 2, 3, 4, 5]
    assert not ledger.finished
    run(ledger, PlantedStage(tmp_path / "none"), max_bad=0.5, shards=range(6))
    assert content(ledger.root) == whole


def test_what_another_run_does_meanwhile_is_not_done_again(work: Work, tmp_path: Path, whole: dict[str, bytes]) -> None:
    ledger, passed = planted_ledger(tmp_path / "out"), list[int]()

    def advance(images: int) -> None:
        if not passed:
            run(Ledger.open(ledger.root), PlantedStage(tmp_path / "none"), max_bad=0.5, shards=range(6, SHARDS))
        passed.append(images)

    report = work(ledger, advance=advance)
    assert (report.images + report.bad, sum(passed)) == (6 * 2, IMAGES)
    assert content(ledger.root) == whole


class LateStage(PlantedStage):
    """Finds, when it is done, that another run has committed the shard, with a row that is another in its bytes."""

    def __init__(self, root: Path, faults: Path) -> None:
        super().__init__(faults)
        self.root = root

    def process(self, samples: list[Sample], source: Any, target: Path, footer: dict[str, Any], advance: Any) -> Any:
        other = Ledger.open(self.root)
        run(other, PlantedStage(self._faults), max_bad=0.5, shards=range(footer["shard"], footer["shard"] + 1))
        result = super().process(samples, source, target, footer, advance)
        target.write_bytes(target.read_bytes() + b"another")
        return result


def test_of_two_that_finish_a_shard_the_first_one_counts(tmp_path: Path, whole: dict[str, bytes]) -> None:
    ledger = planted_ledger(tmp_path / "out")
    run(ledger, LateStage(ledger.root, tmp_path / "none"), max_bad=0.5)
    assert content(ledger.root) == whole
    assert check_files(ledger).problems == []


def test_sigterm_of_the_driver_is_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), driver._interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_that_dies_with_its_result_costs_nothing(
    work: Work, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard is committed, the task has ended, and what it said is lost on the way."""
    lost: list[object] = []

    def take(self: WorkerPool, worker: str, future: Any) -> Any:
        if worker in self.busy and not lost:
            lost.append(worker)
            self._client.run(worker_pool._kill_worker, workers=[worker], nanny=True)
            time.sleep(0.5)  # a worker that begins anew within both waits would do the shard again
        return real(self, worker, future)

    real = WorkerPool._take
    monkeypatch.setattr(WorkerPool, "_take", take)
    monkeypatch.setattr(worker_pool, "_RESULT_SECONDS", 0.5)
    ledger = planted_ledger(tmp_path / "out")
    report = work(ledger)
    assert lost
    assert report.images == IMAGES - BAD
    assert {commit.attempt for commit in ledger.commits()} == {1}
    assert content(ledger.root) == whole


PAGES = """
import resource, torch
from sea_pipeline.execution.worker import give_freed_memory_back, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(2_000_000).fill_(1.0)  # 8 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
keep_freed_memory()
faults()
again = faults()
rows = [torch.empty(2_000_000).fill_(1.0) for _ in range(8)]
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
del rows
held = resident()
give_freed_memory_back()
print(given_back, again, held - resident())
"""
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's")
@pytest.mark.skipif(HUGE.is_file() and "[always]" in HUGE.read_text(), reason="pages of 2 MiB are too few to count")
def test_a_worker_keeps_the_memory_that_dask_has_it_give_back() -> None:
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", PAGES], env=environment, capture_output=True, text=True, check=True)
    given_back, kept, returned = map(int, done.stdout.split())
    assert given_back > 1000  # pages of up to 4 KiB that the system had to find again
    assert kept < given_back / 10
    assert returned > 8_000_000


def test_a_worker_knows_the_listed_files_by_their_size_if_their_times_are_of_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, opened = planted_ledger(tmp_path / "out"), []
    ledger.versions = {"x.tar": Version(5, {"mtime_ns": 7}), "in a store": Version(5, {"ETag": "a"})}
    plugin = worker.StagePlugin(PlantedJob(tmp_path / "none"), ledger, None, "kept")
    monkeypatch.setattr(worker, "open_source", lambda _, versions: opened.append(versions))
    for host in (platform.node(), "another"):
        monkeypatch.setattr(platform, "node", lambda host=host: host)
        plugin.setup(None)  # type: ignore[arg-type]  # dask's worker, which is not looked at
        plugin.ready()
    assert opened == [ledger.versions, ledger.versions | {"x.tar": Version(5, {})}]


def test_every_worker_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = planted_ledger(tmp_path / "out")
    plugin = worker.StagePlugin(PlantedJob(tmp_path / "none"), ledger, None, "kept")
    kept: list[bool] = []
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: kept.append(True))
    plugin.setup(None)  # type: ignore[arg-type]  # dask's worker, which is not looked at
    assert plugin.ready()["stage"] == {"device": "cpu", "backend": "planted"}
    assert kept == [True]
    monkeypatch.setattr(worker, "give_freed_memory_back", lambda: kept.append(False))
    assert plugin.process(0, 1)["rows"] == 2
    assert kept == [True, False]

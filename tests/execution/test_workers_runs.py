"""`label` and `teacher` with workers, as commands: the same files as alone, and nothing left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.execution.cluster_settings import WorkerSettings
from sea_pipeline.execution.driver import Driver, _interrupted
from sea_pipeline.output.ledger import Ledger
from tests.support.contents import content
from tests.support.kills import descendants
from tests.support.programs import Begin, labelling
from tests.support.worker_world import FAULTS, forked_workers, plant_fault, planted_ledger
from tests.support.world import Label, draw_but_one

PRELOAD = "tests.support.worker_world"
assert distributed.__version__  # its settings must be there before any is changed
Scheduler = tuple[str, list[subprocess.Popen[bytes]]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_but_one(tmp_path_factory.mktemp("world") / "photos", 18)


@pytest.fixture
def command(words: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The command's arguments that label the photos, with the colour encoder here and in workers."""
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", json.dumps([PRELOAD]))

    def command(*more: object) -> list[str]:
        fixed = labelling(photos, words, tmp_path / "out", "--shard-size", 2, "--search", "torch", "--no-dashboard")
        return [str(argument) for argument in (*fixed, *more)]

    return command


@pytest.fixture
def begin(command: Callable[..., list[str]], program: Begin) -> Begin:
    """Begins the command with more arguments."""
    return lambda *more: program(*command(*more))


@pytest.fixture
def whole(label: Label, photos: Path, tmp_path: Path) -> dict[str, bytes]:
    label(images=str(photos), out=tmp_path / "whole", shard_size=2)
    return content(tmp_path / "whole")


def alive(pids: set[int]) -> set[int]:
    def lives(pid: int) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        return False

    return {pid for pid in pids if lives(pid)}


def wait_for(condition: Callable[[], object], seconds: float = 500) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it does not happen"
        time.sleep(0.05)


def commits(folder: Path) -> int:
    return len(list((folder / "commits").glob("*")))


@pytest.mark.processes
def test_three_workers_label_the_same(label: Label, photos: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    with forked_workers(), dask.config.set({"distributed.worker.preload": [PRELOAD]}):
        done = label(images=str(photos), shard_size=2, crew=WorkerSettings(workers=3, dashboard=False))
    assert content(tmp_path / "labels") == whole
    assert (done.report.images, done.report.bad, done.device) == (17, 1, "cpu")
    assert 1 <= done.report.workers <= 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_python_drops_ends_the_run_all_the_same(tmp_path: Path, number: signal.Signals) -> None:
    """What it raises is lost if an object is being deleted, such as one of dask's."""
    before = signal.signal(number, signal.default_int_handler)  # whatever began the tests may have Ctrl-C ignored

    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(number)

    class Pool:
        idle = ("a worker",)
        calls = 0

        def give(self, *_: object) -> str:
            self.idle = ()
            return "a worker"

        def news(self) -> list[Any]:
            self.calls += 1
            assert self.calls == 1, "it goes on and on"
            Dropped()
            return []

    with pytest.raises(KeyboardInterrupt), _interrupted() as heed:
        Driver(Pool(), planted_ledger(tmp_path / "out"), max_bad=1, heed=heed).run()  # type: ignore[arg-type]
    assert signal.signal(number, before) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_driver_and_another_run_goes_on(
    begin: Begin, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    plant_fault(tmp_path / "faults", 5, "hang")
    monkeypatch.setenv(FAULTS, str(tmp_path / "faults"))
    run = begin("--workers", 2)
    wait_for(lambda: commits(tmp_path / "out") >= 3)
    workers = descendants(run.pid)
    assert len(workers) >= 2
    run.signal(number)
    run.wait()
    wait_for(lambda: not alive(workers))
    if number == signal.SIGTERM:
        assert run.returncode == 130
        assert "stopped; finished shards are kept" in run.stderr
        assert "Traceback" not in run.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    last = begin()
    assert last.wait() == 0
    assert "9 of 9 done" in last.stdout
    assert content(tmp_path / "out") == whole
    assert not list((tmp_path / "out" / ".tmp").iterdir())


def test_two_drivers_of_one_folder_end_with_the_same(begin: Begin, tmp_path: Path, whole: dict[str, bytes]) -> None:
    both = [begin("--workers", 1), begin()]
    assert [run.wait() for run in both] == [0, 0]
    assert content(tmp_path / "out") == whole


@pytest.fixture
def scheduler(tmp_path: Path, command: object) -> Iterator[Scheduler]:
    """A scheduler and a worker that somebody else has started."""
    file = tmp_path / "scheduler.json"
    dask_command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", file, "--port", 0]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", file, "--nthreads", 1]
    commands = [[*dask_command, "--host", "127.0.0.1", "--no-dashboard"], [*worker, "--no-dashboard"]]
    slow = os.environ | {"SEA_TEST_SECONDS": "0.7"}
    begun = [subprocess.Popen([str(part) for part in parts], stderr=subprocess.DEVNULL, env=slow) for parts in commands]
    try:
        wait_for(file.is_file)
        yield str(file), begun
    finally:
        for process in reversed(begun):
            process.terminate()
        for process in begun:
            process.wait(500)


def test_a_scheduler_of_others_is_used_and_stays(
    begin: Begin, scheduler: Scheduler, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    address, processes = scheduler
    run = begin("--scheduler", address)
    assert run.wait() == 0
    assert "9 of 9 done" in run.stdout
    assert content(tmp_path / "out") == whole
    assert [process.poll() for process in processes] == [None, None]


def test_a_scheduler_that_dies_is_one_line(
    begin: Begin, scheduler: Scheduler, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    address, processes = scheduler
    run = begin("--scheduler", address)
    wait_for(lambda: commits(tmp_path / "out"))
    processes[0].kill()
    assert run.wait() == 1
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert "the scheduler is gone" in line
    assert "Traceback" not in run.stderr
    assert begin().wait() == 0
    assert content(tmp_path / "out") == whole


def test_a_job_array_divides_the_shards(begin: Begin, tmp_path: Path, whole: dict[str, bytes]) -> None:
    for part in (3, 1, 2):
        assert not (tmp_path / "out" / "manifest.json").exists()
        run = begin("--shard-range", f"{part}/3")
        assert run.wait() == 0
    assert "9 of 9 done" in run.stdout
    assert content(tmp_path / "out") == whole


def test_a_job_that_begins_again_takes_back_only_its_own_shards(
    label: Label, photos: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """A bad image makes its shard one that is read again: that of another job is the other job's to read."""
    out = tmp_path / "labels"
    label(images=str(photos), shard_size=2, crew=WorkerSettings(shard_range="1/2"))
    (bad,) = (commit.shard for commit in Ledger.open(out).commits() if commit.bad)
    before = (out / "commits" / f"{bad:05d}.json").stat().st_mtime_ns
    label(images=str(photos), shard_size=2, crew=WorkerSettings(shard_range="2/2"))
    assert (out / "commits" / f"{bad:05d}.json").stat().st_mtime_ns == before
    assert content(out) == whole


@pytest.mark.slow
def test_alone_dask_is_never_imported(command: Callable[..., list[str]]) -> None:
    loaded = "import sys; import tests.support.world as w\ntry: w.main()\nexcept SystemExit as end"
    loaded += ": print({'dask', 'distributed'} & set(sys.modules), end.code)"
    run = subprocess.run([sys.executable, "-c", loaded, *command()], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("set() 0\n")


def test_without_dask_one_line_names_the_extra(label: Label, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"'distributed' cannot be imported .*pip install .*\[dask\]'"):
        label(images=str(photos), crew=WorkerSettings(workers=2))

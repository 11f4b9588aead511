"""Options and files that say who works, and what dask is asked to start for them."""

import contextlib
import gc
import logging
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import dask
import distributed
import psutil
import pytest
from dask_jobqueue import SLURMCluster

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT
from sea_pipeline.execution import cluster_settings, dask_clusters
from sea_pipeline.execution.cluster_settings import (
    Cluster,
    ExistingCluster,
    LocalCluster,
    SlurmCluster,
    WorkerSettings,
    load_cluster,
    visible_gpus,
)
from sea_pipeline.execution.dask_clusters import connected, scheduler_address, slurm_arguments
from sea_pipeline.execution.dispatch import driver_role
from sea_pipeline.storage.paths import data_folder
from tests.support.refused import refused

WHOLE = '{"type": "Scheduler", "address": "tcp://127.0.0.1:8786"}'
FILES = sorted((data_folder("jobs") / "clusters").glob("*.yaml"))


def connects_to_none(cluster: Cluster, said: str) -> None:
    with refused(match=said), connected(cluster, dashboard=False, reporter=SILENT):
        pass


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Four GPUs, as far as the settings can tell."""
    there = ["0", "1", "2", "3"]
    monkeypatch.setattr(cluster_settings, "visible_gpus", lambda: tuple(there))
    return there


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"workers": 2, "scheduler": "tcp://x:1"}, "--workers and --scheduler: each says where workers come from"),
        ({"cluster": "x", "scheduler": "y"}, "--scheduler and --cluster: each says"),
        ({"workers": 0}, "--workers: input should be greater than or equal to 1, found 0"),
        ({"shard_timeout": 3.0}, "--shard-timeout: goes with --workers, --scheduler or --cluster"),
        ({"shard_timeout": 0, "workers": 1}, "--shard-timeout: input should be greater than 0"),
        ({"shard_range": "0/4"}, "--shard-range 0/4: expected I/N with I from 1 to N, such as 1/8"),
        ({"shard_range": "5/4"}, "--shard-range 5/4: expected"),
        ({"shard_range": "1-4"}, "--shard-range 1-4: expected"),
    ],
)
def test_options_that_make_no_sense_are_one_line(options: dict[str, Any], expected: str) -> None:
    with refused(start=expected):
        WorkerSettings.of(**options)


@pytest.mark.parametrize("count", [0, 1, 7, 12])
@pytest.mark.parametrize("parts", [1, 3, 16])
def test_ranges_are_every_shard_once(count: int, parts: int) -> None:
    ranges = [WorkerSettings.of(shard_range=f"{part}/{parts}").shards(count) for part in range(1, parts + 1)]
    assert [shard for one in ranges for shard in one or ()] == list(range(count))
    lengths = [len(one) for one in ranges if one is not None]
    assert max(lengths) - min(lengths) <= 1
    assert WorkerSettings().shards(count) is None


def test_each_worker_has_a_gpu_of_its_own(gpus: list[str]) -> None:
    found = WorkerSettings.of(workers=3).cluster_for("auto")
    assert isinstance(found, LocalCluster)
    assert (found.workers, found.gpus) == (3, ("0", "1", "2"))
    whole = WorkerSettings.of(cluster="cuda").cluster_for("cuda")
    assert isinstance(whole, LocalCluster)
    assert whole.gpus == ("0", "1", "2", "3")
    assert WorkerSettings.of(workers=3).cluster_for("cpu") == LocalCluster(workers=3)
    with pytest.raises(UserError, match=r"and 4 are visible; give --workers 4, or --device cpu$"):
        WorkerSettings.of(workers=5).cluster_for("auto")
    with pytest.raises(UserError, match="--device cuda:1: expected auto, cpu or cuda, for each worker has"):
        WorkerSettings.of(workers=2).cluster_for("cuda:1")
    gpus.clear()
    assert WorkerSettings.of(workers=2).cluster_for("auto") == LocalCluster(workers=2)
    with refused(match=r"--workers 2: each worker has a GPU of its own, and 0 are visible; give --device cpu$"):
        WorkerSettings.of(workers=2).cluster_for("cuda")
    with pytest.raises(UserError, match=r"--cluster: each worker has .* and 0 are visible; use --cluster local$"):
        WorkerSettings.of(cluster="cuda").cluster_for("auto")


def test_gpus_are_counted_by_the_names_that_the_environment_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7f")
    assert visible_gpus() == ("3", "GPU-7f")


@pytest.mark.processes
def test_a_worker_that_dies_with_its_result_is_told_by_us_alone(caplog: pytest.LogCaptureFixture) -> None:
    """dask's client leaves a task behind that fails, and asyncio would tell of it."""
    with connected(LocalCluster(workers=1), dashboard=False, reporter=SILENT) as client:
        ((worker, process),) = client.run(os.getpid).items()
        result = client.submit(int, pure=False, workers=[worker])  # so that no other one makes it again
        while result.status != "finished":
            time.sleep(0.01)
        dying = psutil.Process(process)
        os.kill(process, signal.SIGKILL)
        with contextlib.suppress(psutil.NoSuchProcess):
            while dying.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
        with pytest.raises(TimeoutError):
            result.result(timeout=1)
        result.cancel()
        del result
        gc.collect()
        client.run_on_scheduler(int)  # what the loop of the client had to do is done
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.processes
def test_a_worker_of_a_gpu_sees_that_one_alone_and_its_part_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    loud = logging.getLogger("distributed").level
    cluster = LocalCluster(workers=2, gpus=("4", "GPU-7f"))
    with connected(cluster, dashboard=False, reporter=SILENT) as client:
        seen = client.run(lambda: tuple(os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")))
        limits = {worker["memory_limit"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()}
        threads = client.nthreads()
        stealing = client.run_on_scheduler(lambda dask_scheduler: "stealing" in dask_scheduler.extensions)
        scheduler = client.scheduler.address
        settings = client.run(lambda: dask.config.get("distributed.worker.memory"))
    assert sorted(seen.values()) == [("4", "6"), ("GPU-7f", "6")]
    assert set(threads.values()) == {1}
    assert limits == {distributed.system.MEMORY_LIMIT // 2}
    assert scheduler.startswith("tcp://127.0.0.1:")
    assert not stealing
    for memory in settings.values():
        assert (memory["target"], memory["spill"], memory["pause"], memory["terminate"]) == (False, False, 0.85, 0.95)
    assert "OMP_NUM_THREADS" not in os.environ
    assert logging.getLogger("distributed").level == loud != logging.CRITICAL


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_packaged_file_is_one_by_its_name(file: Path) -> None:
    cluster = load_cluster(file.stem)
    assert cluster.kind == file.stem
    assert load_cluster(str(file)) == cluster
    assert file.read_text().startswith("#")
    page = (file.parent / "README.md").read_text()
    assert file.name in page
    if file.stem != "local":
        assert "ot run by us" in file.read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: local\nworker: 3\n", "worker: extra inputs are not permitted"),
        ("kind: k8s\n", "kind: input tag 'k8s'"),
        ("workers: 3\n", "kind: unable to extract tag"),
        ("kind: slurm\njobs: 0\n", "jobs: input should be greater than or equal to 1; cores: field required"),
        ("kind: local\nworkers: [\n", "is not YAML"),
        ("kind: local\nkind: cuda\n", "is not YAML: line 2 has the key kind again, after line 1; keep one of them"),
        ("- kind: local\n", "expected keys and values, as jobs/clusters/local.yaml has; found [{'kind': 'local'}]"),
        ("kind: ssh\nhosts: [a]\n", "kind: expected local, cuda or slurm; found ssh; on hosts that you reach by ssh"),
        ("kind: local\nworkers: 4\ngpus: ['0', '1']\n", "gpus: expected one for each of 4 workers, found 2"),
        ("kind: local\nworkers: 0\ngpus: ['0', '1']\n", "workers: input should be greater than or equal to 1"),
        ("kind: slurm\njobs: 1\ncores: 1\nmemory: 1GB\nwalltime: 19\n", "walltime: input should be greater than or"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with refused(expected, start=str(file)):
        load_cluster(str(file))


@pytest.mark.parametrize(("name", "advice"), [("kubernetes", ""), ("ssh", "; on hosts that you reach by ssh, run")])
def test_a_name_that_is_none_names_those_that_are(name: str, advice: str) -> None:
    with refused("expected a YAML file, or one of cuda, local, slurm" + advice, start=f"--cluster {name}: "):
        load_cluster(name)


def test_slurm_gets_one_worker_on_all_cores_of_a_job() -> None:
    cluster = SlurmCluster(
        jobs=3, cores=8, memory="64GB", walltime=95, partition="gpu", account="mine", directives=("--constraint=a100",),
        prologue=("module load cuda",), skip_directives=("--mem",),
    )  # fmt: skip
    given = slurm_arguments(cluster, dashboard=False)
    with SLURMCluster(**given) as slurm:
        script = slurm.job_script()
    expected = {
        "#SBATCH -p gpu", "#SBATCH -A mine", "#SBATCH -t 01:35:00", "#SBATCH --cpus-per-task=8", "#SBATCH --gres=gpu:1",
        "#SBATCH --constraint=a100", "module load cuda", "export OMP_NUM_THREADS=8",
    }  # fmt: skip
    assert expected <= set(script.splitlines()), script
    assert "#SBATCH --mem" not in script
    assert "--nthreads 1" in script
    assert "--lifetime 5400s --lifetime-stagger 4m" in script
    assert "--nworkers" not in script


def test_a_machine_without_slurm_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster = SlurmCluster(jobs=2, cores=1, memory="1GB", walltime=20)
    monkeypatch.setenv("PATH", str(tmp_path))
    connects_to_none(cluster, "the slurm cluster does not start: expected Slurm's sbatch on this machine")


def test_a_scheduler_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_clusters, "_CONNECT_SECONDS", 1)
    address = "tcp://127.0.0.1:1"
    said = f"--scheduler {address}: expected the address of a dask scheduler, .* [Tt]imed out"
    connects_to_none(ExistingCluster(address=address), said)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("host", "missing port number"),
        ("foo://x:1", "unknown address scheme 'foo'"),
        ("nowhere.json", "missing port number"),
        ("empty.json", "no 'address' in it"),
        ("short.json", "Unterminated string"),
        ("list.json", "list indices must be integers"),
        ("number.json", "expected str, got 'int'"),
    ],
)
def test_what_is_no_scheduler_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, found: str
) -> None:
    """By a client of dask's it would be told twice, and after a wait."""
    monkeypatch.chdir(tmp_path)
    contents = {"empty": "{}", "short": '{"addr', "list": "[]", "number": '{"address": 5}', "whole": WHOLE}
    for stem, text in contents.items():
        Path(f"{stem}.json").write_text(text)
    monkeypatch.setattr(dask_clusters, "Client", lambda *_, **__: pytest.fail("nobody is called"))
    with refused(match=f"^--scheduler {name}: expected the address .*; {found}"):
        driver_role(WorkerSettings.of(scheduler=name), "cpu")
    connects_to_none(ExistingCluster(address=name), found)
    assert scheduler_address("whole.json") == scheduler_address("tcp://127.0.0.1:8786") == "tcp://127.0.0.1:8786"


def test_a_cluster_of_ours_that_does_not_answer_is_called_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_clusters, "_started", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(dask_clusters, "Client", Mock(side_effect=OSError("timed out")))
    connects_to_none(LocalCluster(workers=1), "^the local cluster does not answer: timed out$")


@pytest.mark.parametrize(
    ("environment", "part"),
    [({"SLURM_ARRAY_TASK_COUNT": "16"}, "7/16"), ({"SLURM_ARRAY_TASK_COUNT": "1", "PARTS": "16"}, "7/16")],
    ids=["at first", "repeated alone"],
)
def test_a_task_of_the_job_array_does_its_part(tmp_path: Path, environment: dict[str, str], part: str) -> None:
    called = tmp_path / "sea-pipeline"
    called.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    called.chmod(0o755)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "7", **environment}
    script = ["bash", data_folder("jobs") / "slurm-array.sh", "--images", "my photos"]
    done = subprocess.run(script, env=given, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["label", "--shard-range", part, "--images", "my photos"]
    WorkerSettings.of(shard_range=part)


def test_dask_says_nothing_by_itself_meanwhile() -> None:
    """Its client has a logger with a level and a handler of its own, and prints the traceback of a lost scheduler."""
    names = ("distributed", "distributed.client", "distributed.utils")
    before = [logging.getLogger(name).level for name in names]
    with dask_clusters._quiet():
        assert not any(logging.getLogger(name).isEnabledFor(logging.ERROR) for name in names)
    assert [logging.getLogger(name).level for name in names] == before
    assert logging.getLogger("distributed.client").isEnabledFor(logging.ERROR)

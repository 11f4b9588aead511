"""Starts what `clusters` describes, with dask, and ends what it has started. Import it behind `require_dask`."""

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Nanny, Scheduler, SSHCluster
from distributed.core import Status
from distributed.deploy.spec import SpecCluster
from distributed.system import MEMORY_LIMIT
from tornado.ioloop import PeriodicCallback

from sea_pipeline import clusters
from sea_pipeline.clusters import Cluster
from sea_pipeline.errors import UserError, one_line
from sea_pipeline.optional import require

_LOOPBACK = "127.0.0.1"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_REPLACED_SECONDS = 10
_ENDING_SECONDS = 300
"""Of a Slurm job: a worker goes so long before its job is ended, in the middle of a shard at worst."""


@contextmanager
def connected(cluster: Cluster, *, dashboard: bool, say: Callable[[str], None]) -> Iterator[Client]:
    """A client of the cluster, which is started for it and ended after it; an existing scheduler stays.

    `say` hears where the dashboard is.

    Raises:
        UserError: it cannot be started or reached.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # a worker that dies is told in our own words
    with _environment_kept(), dask.config.set(_configuration(cluster)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Port .* is already in use")
        if isinstance(cluster, clusters.Existing):
            with _client(cluster.address, cluster.address) as client:
                yield client
            return
        try:
            started = _started(cluster, dashboard=dashboard and find_spec("bokeh") is not None)
        except Exception as error:  # no ssh, no sbatch, a name that is none: whatever the cluster's own parts say
            raise UserError(f"the {cluster.kind} cluster does not start: {one_line(error)}") from error
        with started, _client(started, cluster.kind) as client:
            if dashboard:
                say(f"dashboard: {client.dashboard_link}" if find_spec("bokeh") else "no dashboard: bokeh is missing")
            yield client


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Dask sets the variables of its workers in this process, too."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _client(where: Any, name: str) -> Iterator[Client]:  # noqa: ANN401 - a cluster or an address
    try:
        file = isinstance(where, str) and Path(where).is_file()
        client = (
            Client(scheduler_file=where, timeout=10, set_as_default=False)
            if file
            else Client(where, timeout=10, set_as_default=False)
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {name}: expected a dask scheduler, such as `dask scheduler` starts; {one_line(error)}"
        ) from error
    with client:
        yield client


def _configuration(cluster: Cluster) -> dict[str, Any]:
    """Dask's settings, for this process and for the workers that it starts; see jobs/clusters/README.md."""
    settings: dict[str, Any] = {
        "distributed.scheduler.work-stealing": False,
        "distributed.deploy.lost-worker-timeout": "60s",
        "distributed.scheduler.idle-timeout": f"{cluster.start_timeout + 600:.0f}s",
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": 0.85,
        "distributed.worker.memory.terminate": 0.95,
    }
    if threads := _threads(cluster):
        environment = dict.fromkeys(_THREADS, threads) | {"DASK_LOGGING__DISTRIBUTED": "critical"}
        settings |= {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in environment.items()}
    return settings


def _threads(cluster: Cluster) -> int | None:
    """Cores of one worker."""
    if isinstance(cluster, clusters.LocalCluster):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // cluster.workers)
    return cluster.cores if isinstance(cluster, clusters.SshCluster | clusters.SlurmCluster) else None


def _started(cluster: Cluster, *, dashboard: bool) -> SpecCluster:
    if isinstance(cluster, clusters.LocalCluster):
        return _kept_up(_local(cluster, dashboard=dashboard))
    if isinstance(cluster, clusters.SshCluster):
        return _kept_up(SSHCluster(**ssh_arguments(cluster, dashboard=dashboard)))
    assert isinstance(cluster, clusters.SlurmCluster)
    if shutil.which("sbatch") is None:
        raise FileNotFoundError("expected Slurm's sbatch on this machine; found none")
    slurm = require("dask_jobqueue", "slurm").SLURMCluster(**slurm_arguments(cluster, dashboard=dashboard))
    slurm.adapt(minimum=cluster.jobs, maximum=cluster.jobs)  # not `scale`, which leaves out jobs that have ended
    return slurm  # type: ignore[no-any-return]


def _kept_up(cluster: SpecCluster) -> SpecCluster:
    """Replaces workers whose nanny is gone, too: it gives up where the process that it starts is killed meanwhile."""

    def replace() -> None:
        if cluster.status == Status.running:
            cluster.scale(len(cluster.worker_spec))  # dask starts what is in its list and not there

    assert cluster.loop is not None, "it has begun"
    cluster.loop.add_callback(PeriodicCallback(replace, _REPLACED_SECONDS * 1000).start)
    return cluster


def _local(cluster: clusters.LocalCluster, *, dashboard: bool) -> SpecCluster:
    limit: str | int = cluster.memory_limit
    common = {"nthreads": 1, "host": _LOOPBACK, "dashboard": False, "silence_logs": logging.CRITICAL}
    common |= {"memory_limit": MEMORY_LIMIT // cluster.workers if limit == "auto" else limit}
    devices = cluster.gpus or (None,) * cluster.workers
    return SpecCluster(
        scheduler={
            "cls": Scheduler,
            "options": {"host": _LOOPBACK, "port": 0, "dashboard": dashboard}
            | {"dashboard_address": f"{_LOOPBACK}:{8787 if dashboard else 0}"},
        },
        workers={
            number: {
                "cls": Nanny,
                "options": common | ({"env": {"CUDA_VISIBLE_DEVICES": device}} if device is not None else {}),
            }
            for number, device in enumerate(devices)
        },
        silence_logs=logging.CRITICAL,
    )


def ssh_arguments(cluster: clusters.SshCluster, *, dashboard: bool) -> dict[str, Any]:
    """What dask's SSHCluster is called with: its first host is the scheduler's."""
    return {
        "hosts": [cluster.hosts[0], *cluster.hosts],
        "connect_options": {"username": cluster.username} if cluster.username else {},
        "worker_options": {"nthreads": 1, "n_workers": 1, "memory_limit": cluster.memory_limit},
        "scheduler_options": {"port": 0, "dashboard": dashboard, "dashboard_address": f"{_LOOPBACK}:8787"},
        "remote_python": cluster.python,
    }


def slurm_arguments(cluster: clusters.SlurmCluster, *, dashboard: bool) -> dict[str, Any]:
    """What dask-jobqueue's SLURMCluster is called with: one worker of one dask thread a job, on all the job's cores."""
    return {
        "cores": 1,
        "processes": 1,
        "job_cpu": cluster.cores,
        "memory": cluster.memory,
        "walltime": f"{cluster.walltime // 60:02d}:{cluster.walltime % 60:02d}:00",
        "queue": cluster.partition,
        "account": cluster.account,
        "interface": cluster.interface,
        "job_name": "sea-pipeline",
        "job_extra_directives": [*(["--gres=gpu:1"] if cluster.gpus else []), *cluster.directives],
        "job_directives_skip": list(cluster.skip_directives),
        "job_script_prologue": [*cluster.prologue, *(f"export {name}={cluster.cores}" for name in _THREADS)],
        "worker_extra_args": [
            "--lifetime", f"{cluster.walltime * 60 - _ENDING_SECONDS}s", "--lifetime-stagger", "4m", "--no-dashboard"
        ],
        "scheduler_options": {"dashboard": dashboard, "dashboard_address": f"{_LOOPBACK}:8787"},
    }  # fmt: skip

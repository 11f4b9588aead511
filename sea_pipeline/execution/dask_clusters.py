"""Starts what `cluster_settings` describes, with dask, and ends what it has started."""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Nanny, Scheduler, SSHCluster
from distributed.comm.addressing import resolve_address
from distributed.core import Status
from distributed.deploy.spec import SpecCluster
from distributed.system import MEMORY_LIMIT
from tornado.ioloop import PeriodicCallback

from sea_pipeline.core.devices import cores
from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import require
from sea_pipeline.core.progress import Reporter
from sea_pipeline.execution import cluster_settings
from sea_pipeline.execution.cluster_settings import Cluster

_LOOPBACK = "127.0.0.1"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_REPLACED_SECONDS = 10
_CONNECT_SECONDS = 10
_ENDING_SECONDS = 300
"""Of a Slurm job: a worker goes so long before its end, give or take four minutes, in the midst of a shard at worst."""
_NO_SCHEDULER = (
    "--scheduler {}: expected the address of a dask scheduler, such as tcp://host:8786, or the file that "
    "`dask scheduler --scheduler-file` wrote; "
)


@contextmanager
def connected(cluster: Cluster, *, dashboard: bool, reporter: Reporter) -> Iterator[Client]:
    """A client of the cluster, which is started for it and ended after it; an existing scheduler stays.

    `reporter` hears where the dashboard is.

    Raises:
        UserError: it cannot be started or reached.
    """
    with _quiet(), _environment_kept(), dask.config.set(_configuration(cluster)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Port .* is already in use")
        if isinstance(cluster, cluster_settings.Existing):
            problem = _NO_SCHEDULER.format(cluster.address)
            with _client(scheduler_address(cluster.address), problem) as client:
                yield client
            return
        try:
            started = _started(cluster, dashboard=dashboard and find_spec("bokeh") is not None)
        except Exception as error:  # no ssh, no sbatch, a name that is none: whatever the cluster's own parts say
            raise UserError(f"the {cluster.kind} cluster does not start: {one_line(error)}") from error
        with started, _client(started, f"the {cluster.kind} cluster does not answer: ") as client:
            if dashboard:
                shown = find_spec("bokeh") is not None
                reporter.message(f"dashboard: {client.dashboard_link}" if shown else "no dashboard: bokeh is missing")
            yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """A worker or a scheduler that dies is told in our own words."""
    known = logging.root.manager.loggerDict  # some of dask's loggers have a level of their own
    loggers = [logging.getLogger(name) for name in list(known) if name.partition(".")[0] == "distributed"]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


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


def scheduler_address(name: str) -> str:
    """The address of the scheduler that `--scheduler` names, by itself or by the file that the scheduler wrote.

    Nobody is called: a client of what is no address would hang, and say so after the run.

    Raises:
        UserError: it is neither.
    """
    try:
        file = Path(name)
        address: str = json.loads(file.read_text("utf-8"))["address"] if file.is_file() else name
        resolve_address(address)
    except Exception as error:  # no such host, a file of something else, a protocol that lacks its package
        reason = f"no {error} in it" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{_NO_SCHEDULER.format(name)}{reason}") from error
    return address


@contextmanager
def _client(where: SpecCluster | str, problem: str) -> Iterator[Client]:
    try:
        client = Client(where, timeout=_CONNECT_SECONDS, set_as_default=False)
    except Exception as error:  # nobody answers, or not in this language, such as TLS without a certificate
        raise UserError(f"{problem}{one_line(error)}") from error
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
    if isinstance(cluster, cluster_settings.LocalCluster):
        return max(1, cores() // cluster.workers)
    return cluster.cores if isinstance(cluster, cluster_settings.SshCluster | cluster_settings.SlurmCluster) else None


def _started(cluster: Cluster, *, dashboard: bool) -> SpecCluster:
    if isinstance(cluster, cluster_settings.LocalCluster):
        return _kept_up(_local(cluster, dashboard=dashboard))
    if isinstance(cluster, cluster_settings.SshCluster):
        return _kept_up(SSHCluster(**ssh_arguments(cluster, dashboard=dashboard)))
    assert isinstance(cluster, cluster_settings.SlurmCluster)
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


def _local(cluster: cluster_settings.LocalCluster, *, dashboard: bool) -> SpecCluster:
    limit: str | int = cluster.memory_limit
    common = {"nthreads": 1, "host": _LOOPBACK, "dashboard": False, "silence_logs": logging.CRITICAL}
    common |= {"memory_limit": MEMORY_LIMIT // cluster.workers if limit == "auto" else limit}
    devices = cluster.gpus or ("",) * cluster.workers  # GPUs are hidden: every worker would take the first
    return SpecCluster(
        scheduler={
            "cls": Scheduler,
            "options": {"host": _LOOPBACK, "port": 0, "dashboard": dashboard}
            | {"dashboard_address": f"{_LOOPBACK}:{8787 if dashboard else 0}"},
        },
        workers={
            number: {"cls": Nanny, "options": common | {"env": {"CUDA_VISIBLE_DEVICES": device}}}
            for number, device in enumerate(devices)
        },
        silence_logs=logging.CRITICAL,
    )


def ssh_arguments(cluster: cluster_settings.SshCluster, *, dashboard: bool) -> dict[str, Any]:
    """What dask's SSHCluster is called with: its first host is the scheduler's."""
    return {
        "hosts": [cluster.hosts[0], *cluster.hosts],
        "connect_options": {"username": cluster.username} if cluster.username else {},
        "worker_options": {"nthreads": 1, "n_workers": 1, "memory_limit": cluster.memory_limit},
        "scheduler_options": {"port": 0, "dashboard": dashboard, "dashboard_address": f"{_LOOPBACK}:8787"},
        "remote_python": cluster.python,
    }


def slurm_arguments(cluster: cluster_settings.SlurmCluster, *, dashboard: bool) -> dict[str, Any]:
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

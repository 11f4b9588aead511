"""Start the clusters that `cluster_settings` describes, with dask, and end what was started."""

import asyncio
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
from distributed import Client, Nanny, Scheduler
from distributed.client import AllExit
from distributed.comm.addressing import resolve_address
from distributed.core import Status
from distributed.deploy.spec import SpecCluster
from distributed.system import MEMORY_LIMIT
from tornado.ioloop import PeriodicCallback

from sea_pipeline.core.devices import cores
from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import require
from sea_pipeline.core.progress import STORES_LOGGERS, Reporter
from sea_pipeline.execution import cluster_settings
from sea_pipeline.execution.cluster_settings import Cluster

_LOOPBACK = "127.0.0.1"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_REPLACED_SECONDS = 10
_CONNECT_SECONDS = 10
_ENDING_SECONDS = 300
"""Seconds before the end of a Slurm job at which its worker leaves, give or take 4 minutes, at worst within a shard."""
_NO_SCHEDULER = (
    "--scheduler {}: expected the address of a dask scheduler, such as tcp://host:8786, or the file that "
    "`dask scheduler --scheduler-file` wrote; "
)


@contextmanager
def connected(cluster: Cluster, *, dashboard: bool, reporter: Reporter) -> Iterator[Client]:
    """Connect to a cluster, starting it first and ending it afterwards.

    An existing scheduler is neither started nor ended. `reporter` shows where the dashboard is.

    Raises:
        UserError: the cluster cannot be started or reached.
    """
    with _quiet(), _environment_kept(), dask.config.set(_configuration(cluster)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Port .* is already in use")
        if isinstance(cluster, cluster_settings.ExistingCluster):
            problem = _NO_SCHEDULER.format(cluster.address)
            with _client(scheduler_address(cluster.address), problem) as client:
                yield client
            return
        try:
            started = _started(cluster, dashboard=dashboard and find_spec("bokeh") is not None)
        except Exception as error:  # no sbatch, a wrong name, or another error of the cluster's parts
            raise UserError(f"the {cluster.kind} cluster does not start: {one_line(error)}") from error
        with started, _client(started, f"the {cluster.kind} cluster does not answer: ") as client:
            if dashboard:
                shown = find_spec("bokeh") is not None
                reporter.message(f"dashboard: {client.dashboard_link}" if shown else "no dashboard: bokeh is missing")
            yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence dask's loggers, because we report the death of a worker or a scheduler in our own words."""
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
    """Restore the environment, because dask sets the variables of its workers in this process, too."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def scheduler_address(name: str) -> str:
    """Return the address of the scheduler that `--scheduler` names.

    `name` is an address or the file that the scheduler wrote. The scheduler is not called, because a client given a
    wrong address would hang and only complain after the run.

    Raises:
        UserError: `name` is neither.
    """
    try:
        file = Path(name)
        address: str = json.loads(file.read_text("utf-8"))["address"] if file.is_file() else name
        resolve_address(address)
    except Exception as error:  # no such host, another kind of file, a protocol whose package is missing
        reason = f"no {error} in it" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{_NO_SCHEDULER.format(name)}{reason}") from error
    return address


@contextmanager
def _client(where: SpecCluster | str, problem: str) -> Iterator[Client]:
    try:
        client = Client(where, timeout=_CONNECT_SECONDS, set_as_default=False)
    except Exception as error:  # no answer, or one in another protocol, such as TLS without a certificate
        raise UserError(f"{problem}{one_line(error)}") from error
    with client:
        client.sync(_hear_errors)
        yield client


async def _hear_errors() -> None:
    asyncio.get_running_loop().set_exception_handler(_without_abandoned)


def _without_abandoned(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Tell of errors in the client's tasks, but for those of waiting for a result whose worker has died."""
    if not isinstance(context.get("exception"), AllExit):
        loop.default_exception_handler(context)


def _configuration(cluster: Cluster) -> dict[str, Any]:
    """Return dask's settings for this process and the workers that it starts.

    See jobs/clusters/README.md.
    """
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
        silent = [f"DASK_LOGGING__{name.upper()}" for name in ("distributed", *STORES_LOGGERS)]
        environment = dict.fromkeys(_THREADS, threads) | dict.fromkeys(silent, "critical")
        settings |= {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in environment.items()}
    return settings


def _threads(cluster: Cluster) -> int | None:
    """Return the number of cores of one worker, or None for an existing scheduler."""
    if isinstance(cluster, cluster_settings.LocalCluster):
        return max(1, cores() // cluster.workers)
    return cluster.cores if isinstance(cluster, cluster_settings.SlurmCluster) else None


def _started(cluster: Cluster, *, dashboard: bool) -> SpecCluster:
    if isinstance(cluster, cluster_settings.LocalCluster):
        return _kept_up(_local(cluster, dashboard=dashboard))
    assert isinstance(cluster, cluster_settings.SlurmCluster)
    if shutil.which("sbatch") is None:
        raise FileNotFoundError("expected Slurm's sbatch on this machine; found none")
    slurm = require("dask_jobqueue", "slurm").SLURMCluster(**slurm_arguments(cluster, dashboard=dashboard))
    slurm.adapt(minimum=cluster.jobs, maximum=cluster.jobs)  # `scale` would not replace jobs that have ended
    return slurm  # type: ignore[no-any-return]


def _kept_up(cluster: SpecCluster) -> SpecCluster:
    """Replace workers whose nanny is gone, too.

    A nanny gives up if the process that it is starting is killed meanwhile.
    """

    def replace() -> None:
        if cluster.status == Status.running:
            cluster.scale(len(cluster.worker_spec))  # dask starts the workers of its list that are missing

    assert cluster.loop is not None, "it has begun"
    cluster.loop.add_callback(PeriodicCallback(replace, _REPLACED_SECONDS * 1000).start)
    return cluster


def _local(cluster: cluster_settings.LocalCluster, *, dashboard: bool) -> SpecCluster:
    limit: str | int = cluster.memory_limit
    common = {"nthreads": 1, "host": _LOOPBACK, "dashboard": False, "silence_logs": logging.CRITICAL}
    common |= {"memory_limit": MEMORY_LIMIT // cluster.workers if limit == "auto" else limit}
    devices = cluster.gpus or ("",) * cluster.workers  # without GPUs: hide them, or every worker would take the first
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


def slurm_arguments(cluster: cluster_settings.SlurmCluster, *, dashboard: bool) -> dict[str, Any]:
    """Return the arguments of dask-jobqueue's SLURMCluster.

    Each job has one worker with one dask thread, on all cores of the job.
    """
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

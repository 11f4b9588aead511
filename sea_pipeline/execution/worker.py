"""Build the stage of a run once on a worker of a cluster, and process one shard at a time there.

Driver and workers exchange shard numbers and small dicts, but no images, labels or models.
"""

import ctypes
import os
import pickle
import platform
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from distributed import Worker, get_worker

from sea_pipeline.core.errors import UserError, with_type
from sea_pipeline.core.own_trainer import take_own_trainer
from sea_pipeline.core.parallel import ThreadPool
from sea_pipeline.execution.shard import ShardError, process_shard
from sea_pipeline.execution.stage import Stage
from sea_pipeline.execution.worker_pool import NamedPlugin, Outcome
from sea_pipeline.inputs.sources import Source, open_source
from sea_pipeline.inputs.sources.versions import on_another_host
from sea_pipeline.output.folder import LOGS
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.paths import below
from sea_pipeline.storage.publish import publish_bytes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of options in glibc's malloc.h."""
_SEEN_SECONDS = 10
"""Seconds by which a network file system may delay the sight of a new file on another host."""


class Job(Protocol):
    """A small picklable object that makes the stage of a run on a worker.

    It is sent to every worker.
    """

    @property
    def name(self) -> str:
        """Name the work, such as `label`, for the names of tasks."""
        ...

    def stage(self, ledger: Ledger) -> Stage:
        """Load what the work needs, on the worker.

        Raises:
            UserError: something is missing, or would make other rows than the folder's; see `refuse_other_fields`.
        """
        ...


def keep_freed_memory() -> None:
    """Make glibc reuse freed arrays, and do nothing on other systems.

    A process without dask comes to do so by itself. Dask's nannies set `MALLOC_TRIM_THRESHOLD_`, so each freed array
    goes back to the system. Computing then waits for fresh pages and runs at less than half the speed. The setting
    stays when the run ends.
    """
    with suppress(AttributeError, OSError, TypeError):
        options = ctypes.CDLL(None).mallopt
        options(_TRIM_THRESHOLD, 1 << 26)  # the values that both reach by themselves without dask
        options(_MMAP_THRESHOLD, 1 << 25)


def give_freed_memory_back() -> None:
    """Return freed memory to the system between shards.

    Otherwise dask pauses a worker that seems to hold more than 85 % of its memory.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class StagePlugin(NamedPlugin):
    """Builds the stage in a thread when a worker starts.

    The worker can answer its scheduler while a model loads.

    Args:
        job: makes the stage.
        ledger: the output folder.
        visible_file: a file of the driver below the folder, by which a worker knows that it sees the folder; None for
            stores.
        name: the name of this run.
    """

    def __init__(self, job: Job, ledger: Ledger, visible_file: Path | None, name: str) -> None:
        self.name = name
        # The worker unpickles the job only after it has checked that its `trainer` is ours.
        self._job = pickle.dumps(job)
        self._is_of_trainer = type(job).__module__.startswith("trainer.")
        self._ledger = ledger
        self._visible_file = visible_file
        self._host = platform.node()

    def setup(self, worker: Worker) -> None:
        """Start loading the stage, called by dask on every worker, also on later ones."""
        keep_freed_memory()
        self._loader = ThreadPool(1, thread_name_prefix="load")
        self._loading = self._loader.submit(self._load)
        self._loader.shutdown(wait=False)

    def teardown(self, worker: Worker) -> None:
        """Release the model, called by dask if the run ends before the worker."""
        self._loading.cancel()
        del self._loading

    def _load(self) -> tuple[Stage, Source]:
        give_up = time.monotonic() + _SEEN_SECONDS
        while self._visible_file is not None and not self._visible_file.is_file():
            if time.monotonic() > give_up:
                raise UserError(
                    f"{self._ledger.root}: the worker on {platform.node()} does not see the folder that the run writes "
                    "to; give --out a place that all workers share"
                )
            time.sleep(0.5)
        if self._is_of_trainer:
            take_own_trainer()
        job: Job = pickle.loads(self._job)
        listed = self._ledger.versions
        versions = listed if platform.node() == self._host else on_another_host(listed)
        return job.stage(self._ledger), open_source(self._ledger.image_root, versions)

    def ready(self) -> dict[str, Any]:
        """Wait for the stage, and return the worker's host, process id and stage description.

        Raises:
            UserError: the stage cannot be made from what the user gave.
            ShardError: anything else failed; `logs/` has the traceback.
        """
        try:
            stage, _ = self._loader.result(self._loading)
        except UserError:
            raise
        except Exception as error:
            log = self._ledger.root / LOGS / f"worker-{platform.node()}-{os.getpid()}.log"
            publish_bytes(log, traceback.format_exc().encode(), self._ledger.root)
            raise ShardError(f"{with_type(error)} (see {log})") from error
        return {"host": platform.node(), "pid": os.getpid(), "stage": stage.describe()}

    def process(self, shard: int, attempt: int) -> dict[str, Any]:
        """Make one attempt at a shard, and return its commit as a dict."""
        stage, source = self._loader.result(self._loading)
        try:
            return process_shard(self._ledger, stage, source, shard, attempt, lambda _: None).model_dump()
        finally:
            give_freed_memory_back()

    def finish(self) -> list[str]:
        """Write what follows from all shards, and return the paths of its files inside the folder."""
        stage, _ = self._loader.result(self._loading)
        return [below(self._ledger.root, path) for path in stage.finish(self._ledger)]


def ready(name: str) -> Outcome:
    """Wait, as a task, until this worker can work."""
    return _outcome(lambda: _plugin(name).ready())


def process(name: str, shard: int, attempt: int) -> Outcome:
    """Process one shard as a task."""
    return _outcome(lambda: _plugin(name).process(shard, attempt))


def finish(name: str) -> Outcome:
    """Finish the stage as a task after the last shard."""
    return _outcome(lambda: _plugin(name).finish())


def _plugin(name: str) -> StagePlugin:
    plugin = get_worker().plugins[name]
    assert isinstance(plugin, StagePlugin)
    return plugin


def _outcome(work: Callable[[], Any]) -> Outcome:
    try:
        return {"done": work()}
    except UserError as problem:
        return {"refused": str(problem)}
    except Exception as error:
        return {"failed": str(error) if isinstance(error, ShardError) else with_type(error)}

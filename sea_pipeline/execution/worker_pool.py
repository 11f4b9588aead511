"""Track which workers of a cluster load the stage, are free, are busy or are gone.

A worker has one task at a time, and the task is bound to the worker. If the worker dies or hangs, that task is known to
be the cause, and no other task waits for it. Dask's own scheduler would queue two tasks and blame both.
"""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

from distributed import Client, Future, KilledWorker, Nanny, WorkerPlugin

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.progress import Reporter

Outcome = dict[str, Any]
"""The outcome of a task, with one key: `done`, `failed` (worth another attempt) or `refused` (the run must end)."""
TICK = 1.0
"""Seconds between two looks at the list of workers."""
_RESULT_SECONDS = 10
_LOST_LOADING = 3
"""The number of workers dying one after the other, while they load the stage, that ends the run."""


class NamedPlugin(WorkerPlugin):
    """A plugin of workers with a name of its own."""

    name: str


class WorkerPool:
    """Gives tasks to workers that are ready for them.

    Args:
        client: the client of the cluster.
        plugin: registered on every worker, also on later ones; tasks are called with its name.
        load: the task that waits until a worker is ready and returns its description.
        start_timeout: seconds without any worker after which the run ends.
        reporter: shows messages about workers that cannot be used.
    """

    def __init__(
        self,
        client: Client,
        plugin: NamedPlugin,
        load: Callable[[str], Outcome],
        *,
        start_timeout: float,
        reporter: Reporter,
    ) -> None:
        self.about: dict[str, Any] = {}
        """A worker's description of itself; see `StagePlugin.ready`."""
        self.idle: set[str] = set()
        """The addresses of free workers. The collections below use addresses, too."""
        self.busy: dict[str, Future[Outcome]] = {}
        self._loading: dict[str, Future[Outcome]] = {}
        self._useless: dict[str, str] = {}
        self._killed: set[str] = set()
        self._client = client
        self._plugin = plugin
        self._load = load
        self._start_timeout = start_timeout
        self._reporter = reporter
        self._ended: SimpleQueue[tuple[str, Future[Outcome]]] = SimpleQueue()
        self._lost_loading = 0
        self._looked, self._last_seen = -TICK, time.monotonic()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Register the plugin on every worker, and remove it at the end."""
        try:
            self._client.register_plugin(self._plugin)
        except OSError:  # a worker died meanwhile; the others have it, and later ones get it
            pass
        except Exception as error:  # whatever an import may raise there
            raise UserError(f"the workers cannot run sea-pipeline: {one_line(error)}; install it there") from error
        try:
            yield
        finally:
            with suppress(Exception):  # report what ended the run, not that the cluster is gone, too
                self._client.cancel([*self._loading.values(), *self.busy.values()])
                self._client.unregister_worker_plugin(self._plugin.name)

    def give(self, key: str, task: Callable[..., Outcome], *arguments: int) -> str:
        """Give a task to a free worker, and return the worker's address."""
        worker = self.idle.pop()
        self.busy[worker] = self._submit(worker, key, task, *arguments)
        return worker

    def news(self) -> list[tuple[str, Outcome]]:
        """Return the outcomes of the workers' tasks since the last call.

        Waits for one, but at most for a `TICK`. Two outcomes come in addition to those that tasks return: `died` names
        the worker, and `cancelled` says nothing of the task.

        Raises:
            UserError: a worker refuses its task; no worker comes; none can load the stage; or the scheduler is gone.
        """
        try:
            news = self._look() if time.monotonic() - self._looked >= TICK else []
            with suppress(Empty):
                worker, future = self._ended.get(timeout=0 if news else TICK)
                while True:
                    news += self._take(worker, future)
                    worker, future = self._ended.get_nowait()
        except (OSError, TimeoutError) as error:  # the connection failed
            raise UserError(
                f"the scheduler is gone ({one_line(error)}); what is finished is kept: start it, and run the same "
                "command again"
            ) from error
        return news

    def restart(self, worker: str) -> None:
        """Kill a worker that hangs in its task, so that its nanny starts another one."""
        self.busy.pop(worker).cancel()
        try:  # dask's own `restart_workers` asks the worker first and waits for its answer
            self._client.run(_kill_worker, workers=[worker], nanny=True)
            self._killed.add(worker)
        except Exception as error:  # it has no nanny, or went in the meantime
            self._give_up(worker, f"the worker {worker} hangs and cannot be started again: {one_line(error)}")

    def _submit(self, worker: str, key: str, task: Callable[..., Outcome], *arguments: int) -> Future[Outcome]:
        name = self._plugin.name
        key = f"{name}-{key}-{uuid.uuid4().hex[:4]}"
        future = self._client.submit(
            task, name, *arguments, key=key, workers=[worker], allow_other_workers=False, pure=False
        )
        future.add_done_callback(lambda ended: self._ended.put((worker, ended)))
        return future

    def _look(self) -> list[tuple[str, Outcome]]:
        """Update which workers have come and gone, and return the outcomes of lost tasks."""
        self._looked = now = time.monotonic()
        there = self._there()
        known = {*self.busy, *self._loading, *self.idle}
        news = [lost for worker in known - there for lost in self._gone(worker)]
        self._killed &= there  # a scheduler needs a moment to notice a killed worker
        for worker in there - known - self._killed - self._useless.keys():
            self._loading[worker] = self._submit(worker, "load", self._load)
        if there - self._useless.keys():
            self._last_seen = now
        elif there:
            raise UserError(f"no worker can work: {next(iter(self._useless.values()))}")
        elif now - self._last_seen > self._start_timeout:
            raise UserError(
                f"no worker has come for {self._start_timeout:g} s; see that the cluster starts workers and that their "
                "memory is enough; start_timeout in a --cluster file says how long to wait"
            )
        return news

    def _there(self) -> set[str]:
        """List the workers that take tasks.

        A worker whose memory is nearly full takes none.
        """
        if self._client.scheduler is None:
            raise ConnectionError("the client has given it up")
        known = self._client.sync(self._client.scheduler.identity, n_workers=-1)["workers"]
        return {address for address, worker in known.items() if worker["status"] == "running" or address in self.busy}

    def _gone(self, worker: str) -> list[tuple[str, Outcome]]:
        self.idle.discard(worker)
        if future := self._loading.pop(worker, None):
            future.cancel()
            self._lost_loading += 1
            if self._lost_loading >= _LOST_LOADING:
                raise UserError(
                    f"{self._lost_loading} workers one after the other have died while they loaded the model; see that "
                    "their memory is enough, or give fewer --workers"
                )
        if future := self.busy.pop(worker, None):
            future.cancel()
            return [(worker, {"died": f"the worker {worker} died: killed, out of memory, or a crash"})]
        return []

    def _take(self, worker: str, future: Future[Outcome]) -> list[tuple[str, Outcome]]:
        loading = self._loading.get(worker) is future
        if not loading and self.busy.get(worker) is not future:
            return []  # the task was given up before
        outcome = _outcome(future)
        if "died" in outcome:
            return self._gone(worker)
        if "refused" in outcome:
            raise UserError(outcome["refused"])
        del (self._loading if loading else self.busy)[worker]
        if loading and "failed" in outcome:
            self._give_up(worker, f"the worker {worker} does not load the model: {outcome['failed']}")
        elif "cancelled" not in outcome:
            self.idle.add(worker)
        if loading and "done" in outcome:
            self._lost_loading, self.about = 0, outcome["done"]
        return [] if loading else [(worker, outcome)]

    def _give_up(self, worker: str, reason: str) -> None:
        self._useless[worker] = reason
        self._reporter.message(reason)


def _kill_worker(dask_worker: Nanny) -> None:
    assert dask_worker.pid is not None
    os.kill(dask_worker.pid, signal.SIGKILL)


def _outcome(future: Future[Outcome]) -> Outcome:
    if future.status == "finished":
        try:
            outcome: Outcome = future.result(timeout=_RESULT_SECONDS)
            return outcome
        except TimeoutError:  # the worker died with the result, and dask would wait for that worker to redo it
            return {"died": ""}
    if future.status != "error":
        return {"cancelled": future.status}
    if isinstance(problem := future.exception(), KilledWorker):
        return {"died": ""}
    return {"failed": one_line(problem)}  # the task could not even begin: the worker has other packages

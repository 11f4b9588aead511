"""Run a stage on the workers of a cluster until every shard is committed or named as failed."""

import heapq
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Advance, Reporter
from sea_pipeline.execution import worker as workers
from sea_pipeline.execution.cluster_settings import WorkerSettings
from sea_pipeline.execution.dask_clusters import connected
from sea_pipeline.execution.run_report import RunReport, RunTotals
from sea_pipeline.execution.shard import ATTEMPTS, log_attempt
from sea_pipeline.execution.worker import Job, StagePlugin
from sea_pipeline.execution.worker_pool import Outcome, WorkerPool
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import Commit
from sea_pipeline.storage.publish import publish_bytes, scratch_path

DEATHS = 3
"""The number of dead workers after which a shard counts as failed."""


def distribute(
    crew: WorkerSettings,
    job: Job,
    ledger: Ledger,
    device: str,
    *,
    max_bad: float,
    advance: Advance,
    reporter: Reporter,
) -> tuple[RunReport, dict[str, str]]:
    """Run a stage on the workers that the options ask for.

    Returns the report, and a worker's description of its stage. SIGTERM ends the run as Ctrl-C does, so the workers
    that were started for it end before this process.

    Raises:
        UserError: see `WorkerSettings.cluster_for`, `connected` and `Driver.run`.
    """
    ledger.max_bad = max_bad
    cluster = crew.cluster_for(device)
    with (
        _interrupted() as heed,
        stage_plugin(job, ledger) as plugin,
        connected(cluster, dashboard=crew.dashboard, reporter=reporter) as client,
    ):
        pool = WorkerPool(client, plugin, workers.ready, start_timeout=cluster.start_timeout, reporter=reporter)
        with pool.open():
            driver = Driver(pool, ledger, max_bad=max_bad, shard_timeout=crew.shard_timeout, advance=advance, heed=heed)
            return driver.run(crew.shards(ledger.dataset.shards)), pool.about.get("stage", {})


@contextmanager
def _interrupted() -> Iterator[Callable[[], None]]:
    """End the block by KeyboardInterrupt at SIGTERM and at Ctrl-C.

    Yields a function that raises it if it was lost before: Python drops whatever is raised while an object is deleted,
    and dask's futures have work then.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def heed() -> None:
        if came:
            raise KeyboardInterrupt

    numbers = [signal.SIGTERM] if threading.current_thread() is threading.main_thread() else []
    if numbers and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody ignores it or has it
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield heed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stage_plugin(job: Job, ledger: Ledger) -> Iterator[StagePlugin]:
    """Make the plugin for the workers, and a file by which they check that they see the run's folder."""
    name = f"{job.name}-{ledger.dataset.fingerprint[:8]}-{uuid.uuid4().hex[:8]}"
    visible_file = None
    if isinstance(ledger.root, Path):
        ledger = ledger.at(ledger.root.absolute())  # workers may have another current folder
        visible_file = scratch_path(ledger.root, "workers")
        publish_bytes(visible_file, b"", ledger.root)
    try:
        yield StagePlugin(job, ledger, visible_file, name)
    finally:
        if visible_file:
            visible_file.unlink(missing_ok=True)


class _Task(NamedTuple):
    shard: int
    attempt: int
    begun: float


class Driver:
    """Hands out shards, the lowest first, and retries or gives up those that fail.

    A shard fails for good after `ATTEMPTS` exceptions, after being stuck `ATTEMPTS` times, or after `DEATHS` dead
    workers.

    Args:
        pool: the workers.
        ledger: the output folder.
        max_bad: see `local.run`.
        shard_timeout: seconds after which a shard is stuck and its worker is started again; None for never.
        advance: called with the number of images of each shard that is done.
        heed: called again and again; ends the run by what it raises.
    """

    def __init__(
        self,
        pool: WorkerPool,
        ledger: Ledger,
        *,
        max_bad: float,
        shard_timeout: float | None = None,
        advance: Advance = lambda _: None,
        heed: Callable[[], None] = lambda: None,
    ) -> None:
        self._pool = pool
        self._ledger = ledger
        self._totals = RunTotals(ledger, max_bad)
        self._shard_timeout = shard_timeout
        self._advance = advance
        self._heed = heed
        self._waiting: list[tuple[int, int]] = []
        """(shard, attempt)."""
        self._tasks: dict[str, _Task] = {}
        """The task of each busy worker."""
        self._failures: Counter[tuple[int, str]] = Counter()

    def run(self, shards: range | None = None) -> RunReport:
        """Finish the missing shards as `local.run` does, and return the report.

        Raises:
            UserError: see `local.run` and `WorkerPool.news`. Commits stay.
        """
        for todo in self._totals.rounds(shards, self._finish):
            self._waiting = [(shard, 1) for shard in todo]
            self._hand_out()
            while self._waiting or self._tasks:
                for worker, outcome in self._news():
                    self._take(self._tasks.pop(worker), outcome)
                self._end_stuck()
                self._hand_out()
        return self._totals.closed()

    def _news(self) -> list[tuple[str, Outcome]]:
        self._heed()
        return self._pool.news()

    def _hand_out(self) -> None:
        while self._waiting and self._pool.idle:
            shard, attempt = heapq.heappop(self._waiting)
            if attempt == 1 and (commit := self._ledger.commit(shard)):  # by another run, since this one began
                self._advance(commit.rows + commit.bad)
                self._totals.check(commit)
                continue
            worker = self._pool.give(f"{shard:05d}", workers.process, shard, attempt)
            self._tasks[worker] = _Task(shard, attempt, time.monotonic())
            report = self._totals.report
            report.workers = max(report.workers, len(self._tasks))

    def _take(self, task: _Task, outcome: Outcome) -> None:
        if "done" in outcome:
            self._count(Commit.model_validate(outcome["done"]))
        elif commit := self._ledger.commit(task.shard):  # the shard is done, and only its result was lost
            self._count(commit)
        elif "cancelled" in outcome:
            heapq.heappush(self._waiting, (task.shard, task.attempt))
        elif "died" in outcome:
            self._again(task, "death", DEATHS, outcome["died"], log=True)
        else:
            self._again(task, "error", ATTEMPTS, outcome["failed"])

    def _end_stuck(self) -> None:
        for worker, task in list(self._tasks.items()):
            if self._shard_timeout is not None and time.monotonic() - task.begun > self._shard_timeout:
                del self._tasks[worker]
                problem = f"not done within --shard-timeout {self._shard_timeout:g}, on the worker {worker}"
                self._again(task, "stuck", ATTEMPTS, problem, log=True)
                self._pool.restart(worker)

    def _count(self, commit: Commit) -> None:
        self._advance(commit.rows + commit.bad)
        self._totals.add(commit)

    def _again(self, task: _Task, kind: str, most: int, problem: str, *, log: bool = False) -> None:
        shard, attempt, begun = task
        if log:
            log_attempt(self._ledger, shard, attempt, f"{problem}; {time.monotonic() - begun:.0f} s into the attempt\n")
        self._failures[shard, kind] += 1
        if self._failures[shard, kind] < most:
            heapq.heappush(self._waiting, (shard, attempt + 1))
        else:
            self._totals.report.failed[shard] = f"{problem}; attempt {attempt}, {shard:05d}-attempt-{attempt}.log"

    def _finish(self) -> None:
        for _ in range(DEATHS):
            while not self._pool.idle:
                self._news()
            self._pool.give("finish", workers.finish)
            while not (news := self._news()):
                pass
            _, outcome = news[0]
            if "done" in outcome:
                self._ledger.finish([self._ledger.root / path for path in outcome["done"]])
                return
            problem = next(iter(outcome.values()))
        raise UserError(f"{self._ledger.root}: cannot be finished: {problem}; run the same command again")

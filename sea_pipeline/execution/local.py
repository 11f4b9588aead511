"""Run any stage over the shards of a ledger in this process, skipping finished shards and retrying failed ones."""

import threading
from contextlib import closing
from typing import NamedTuple

from sea_pipeline.core.parallel import map_in_order
from sea_pipeline.core.progress import Advance
from sea_pipeline.execution.run_report import RunReport, RunTotals
from sea_pipeline.execution.shard import ATTEMPTS, ShardError, process_shard
from sea_pipeline.execution.stage import Stage
from sea_pipeline.inputs.sources import open_source
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import Commit


def run(
    ledger: Ledger,
    stage: Stage,
    *,
    max_bad: float,
    shards: range | None = None,
    advance: Advance = lambda _: None,
) -> RunReport:
    """Finish the missing shards one after the other, and write the manifest when none is missing.

    Several runs of one folder at the same time do no harm. Each skips shards that another one has committed. If two
    finish the same shard, the first counts. All end with the same folder.

    Args:
        ledger: the output folder.
        stage: the work on one shard.
        max_bad: stop as soon as more than this share of all planned images is bad; 0 allows none, else one is allowed.
        shards: do only these; None for all. The run that finds nothing missing in the whole folder writes the manifest.
        advance: called with the number of images that have passed, a negative one if a shard starts again.

    Raises:
        UserError: too many bad images, or the output cannot be written. Commits stay.
    """
    ledger.max_bad = max_bad
    totals = RunTotals(ledger, max_bad, stage.at_once)
    source = open_source(ledger.image_root, ledger.versions)
    leaving = threading.Event()

    def heard(images: int) -> None:
        if leaving.is_set() and images > 0:
            raise KeyboardInterrupt  # Ctrl-C or an error is already ending the run in the main thread
        advance(images)

    def done(shard: int) -> _ShardOutcome:
        if commit := ledger.commit(shard):  # another run has committed it since this one began
            heard(commit.rows + commit.bad)
            return _ShardOutcome(shard, commit, ours=False)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _ShardOutcome(shard, process_shard(ledger, stage, source, shard, attempt, heard))
            except ShardError as failure:
                reason = str(failure)
        return _ShardOutcome(shard, None, reason=reason)

    for todo in totals.rounds(shards, lambda: ledger.finish(stage.finish(ledger))):
        with closing(map_in_order(done, todo, stage.at_once, leaving)) as each:
            for shard, commit, ours, reason in each:
                if commit is None:
                    totals.report.failed[shard] = reason
                else:
                    (totals.add if ours else totals.check)(commit)
    return totals.closed()


class _ShardOutcome(NamedTuple):
    shard: int
    commit: Commit | None
    """None if all attempts have failed."""
    ours: bool = True
    reason: str = ""

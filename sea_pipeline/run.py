"""Runs any stage over the shards of a ledger: skips what is done, tries again, quarantines."""

import logging
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.parallel import side_by_side
from sea_pipeline.core.progress import process_peak_bytes
from sea_pipeline.inputs.samples import BadSample, Sample
from sea_pipeline.inputs.sources import Source, open_source
from sea_pipeline.output.folder import LOGS
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import Commit
from sea_pipeline.storage.locks import alone
from sea_pipeline.storage.paths import Place, entries
from sea_pipeline.storage.publish import publish, publish_bytes
from sea_pipeline.tally import Report, Tally

_LOG = logging.getLogger(__name__)
ATTEMPTS = 2


class ShardResult(NamedTuple):
    """What a stage says of a shard that it has written."""

    rows: int
    bad: list[BadSample]
    seconds: dict[str, float]
    first_image_sha256: str | None


class Stage(Protocol):
    """Work on one shard at a time; its result is a function of the samples and the fingerprint alone."""

    @property
    def device(self) -> str:
        """Where it computes."""
        ...

    @property
    def backend(self) -> str:
        """For people: for labels what proposes candidates, for targets their codec."""
        ...

    @property
    def at_once(self) -> int:
        """Shards that are done at once: a second one where a GPU would wait for a shard's begin and end."""
        ...

    def process(
        self,
        samples: list[Sample],
        source: Source,
        target: Path,
        footer: dict[str, Any],
        advance: Callable[[int], None],
    ) -> ShardResult:
        """Writes the shard into the file `target`, with `footer` in its footer; tells `advance` of images as they pass.

        A bad image goes to the result's `bad`; an exception fails the shard.
        """
        ...

    def finish(self, ledger: Ledger) -> list[Place]:
        """Writes what follows from all shards together; returns the files that the manifest must name."""
        ...


def run(
    ledger: Ledger,
    stage: Stage,
    *,
    max_bad: float,
    shards: range | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Report:
    """Finishes what is missing, shard after shard, and writes the manifest when nothing is.

    Several runs of one folder at once do no harm: each passes over shards that another one has committed, of two that
    finish one shard the first counts, and all end with the same folder.

    Args:
        ledger: the output folder.
        stage: the work on one shard.
        max_bad: stop as soon as more than this share of all planned images is bad; 0 allows none, else one is allowed.
        shards: only these; None for all. Whoever finds nothing missing in the whole folder writes the manifest.
        advance: told how many images have passed; a negative number where a shard starts again.

    Raises:
        UserError: too many bad images, or the output cannot be written. What is committed stays.
    """
    tally = Tally(ledger, max_bad, stage.at_once)
    source = open_source(ledger.image_root)
    leaving = threading.Event()

    def heard(images: int) -> None:
        if leaving.is_set() and images > 0:
            raise KeyboardInterrupt  # which has reached the main thread, or an error that ends the run
        advance(images)

    def done(shard: int) -> _Done:
        if commit := ledger.commit(shard):  # another run's, since this one began
            heard(commit.rows + commit.bad)
            return _Done(shard, commit, ours=False)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _Done(shard, process_shard(ledger, stage, source, shard, attempt, heard))
            except ShardError as failure:
                reason = str(failure)
        return _Done(shard, None, reason=reason)

    for todo in tally.rounds(shards):
        with closing(side_by_side(done, todo, stage.at_once, leaving)) as each:
            for shard, commit, ours, reason in each:
                if commit is None:
                    tally.report.failed[shard] = reason
                else:
                    (tally.add if ours else tally.check)(commit)
    finish_where_due(ledger, shards, tally.report, lambda: ledger.finish(stage.finish(ledger)))
    return tally.closed()


def finish_where_due(ledger: Ledger, shards: range | None, report: Report, finish: Callable[[], object]) -> None:
    """Has the manifest written if it is due, while nobody extends the folder.

    A run for all shards that none failed must write it, or say why it cannot; of an extended folder the run that
    extended it does.
    """
    due = not ledger.missing() or (shards is None and not report.failed)
    if not due:
        return
    with alone(ledger.root):
        if Ledger.open(ledger.root).dataset.shards == ledger.dataset.shards:
            finish()


class _Done(NamedTuple):
    shard: int
    commit: Commit | None
    """None where all attempts have failed."""
    ours: bool = True
    reason: str = ""


class ShardError(Exception):
    """An attempt at a shard failed; its log is written. The message is one line."""


def process_shard(
    ledger: Ledger, stage: Stage, source: Source, shard: int, attempt: int, advance: Callable[[int], None]
) -> Commit:
    """One attempt at a shard, wherever it is made; its commit, or that of another run which was faster.

    Raises:
        ShardError: it failed; `logs/` has the traceback.
        UserError: nothing can be written.
    """
    try:
        return _process(ledger, stage, source, shard, attempt, advance)
    except UserError:
        raise
    except Exception as error:
        log_attempt(ledger, shard, attempt, traceback.format_exc())
        raise ShardError(f"{type(error).__name__}: {one_line(error)}") from error


def log_attempt(ledger: Ledger, shard: int, attempt: int, text: str) -> None:
    """Keeps what there is to say of an attempt that failed; with the first one, what an earlier run has kept goes."""
    _LOG.debug("shard %d: attempt %d failed: %s", shard, attempt, text.rstrip().rpartition("\n")[2])
    for log in entries(ledger.root / LOGS) if attempt == 1 else ():
        if log.name.startswith(f"{shard:05d}-attempt-"):
            log.unlink(missing_ok=True)
    publish_bytes(ledger.root / LOGS / f"{shard:05d}-attempt-{attempt}.log", text.encode(), ledger.root)


class _FasterError(Exception):
    """Another run has committed the shard in the meantime."""


def _process(
    ledger: Ledger, stage: Stage, source: Source, shard: int, attempt: int, advance: Callable[[int], None]
) -> Commit:
    samples = ledger.samples(shard)
    footer = {"fingerprint": ledger.dataset.fingerprint, "shard": shard, **ledger.dataset.fields}
    passed = 0

    def count(images: int) -> None:
        nonlocal passed
        passed += images
        advance(images)

    with ExitStack() as until_committed:
        try:
            with publish(ledger.shard_path(shard), ledger.root) as scratch:
                result = stage.process(samples, source, scratch, footer, count)
                # Another run's rows may differ in a score's last bit: file and commit must be of one and the same run.
                until_committed.enter_context(alone(ledger.root))
                if faster := ledger.commit(shard):
                    raise _FasterError
        except _FasterError:
            assert faster is not None
            return faster
        except BaseException:
            advance(-passed)
            raise
        assert result.rows + len(result.bad) == len(samples), "every planned image is a row or in quarantine"
        ledger.write_quarantine(shard, result.bad)
        return ledger.record(
            shard,
            rows=result.rows,
            bad=len(result.bad),
            reasons=dict(Counter(f"{bad.stage}: {bad.error}" for bad in result.bad)),
            seconds={part: round(spent, 3) for part, spent in result.seconds.items()},
            first_image_sha256=result.first_image_sha256,
            peak_memory_bytes=process_peak_bytes(),
            attempt=attempt,
        )

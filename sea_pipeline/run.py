"""Runs any stage over the shards of a ledger: skips what is done, tries again, quarantines, counts."""

import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sea_pipeline.ahead import side_by_side
from sea_pipeline.errors import UserError, one_line
from sea_pipeline.ledger import Ledger
from sea_pipeline.memory import process_peak_bytes
from sea_pipeline.records import Commit
from sea_pipeline.samples import BadSample, Sample
from sea_pipeline.sources import Source, open_source
from sea_pipeline.storage import Place, alone, entries, publish, publish_bytes

ATTEMPTS = 2
_ROUNDS = 3
LOGS = "logs"


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


@dataclass
class Report:
    """What a run did; what others had done does not count."""

    images: int = 0
    """Images that got a row."""
    bad: int = 0
    wall_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By part, summed over shards, whoever did them; decoding is summed over its threads, too."""
    failed: dict[int, str] = field(default_factory=dict)
    """Shards that failed too often, with the last error; the tracebacks are in `logs/`."""
    workers: int = 1
    """The most processes that worked at once."""
    at_once: int = 1
    """Shards that each of them did at once."""


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


class Tally:
    """Adds up what a run does, and ends it when too many images of the folder are bad."""

    def __init__(self, ledger: Ledger, max_bad: float, at_once: int = 1) -> None:
        self.report = Report(at_once=at_once)
        self._begun = time.perf_counter()
        self._ledger = ledger
        self._max_bad = max_bad
        self._reasons = ledger.done().reasons
        self._refuse_too_many()

    def rounds(self, shards: range | None) -> Iterator[list[int]]:
        """What is to be done, of `shards` or of all; again while another run that begins takes bad shards back."""
        for again in range(_ROUNDS):
            missing = set(self._ledger.missing()) - self.report.failed.keys()
            todo = sorted(missing if shards is None else missing & set(shards))
            if not todo:
                return
            if again:  # what was taken back has been counted
                self._reasons = self._ledger.done().reasons
            yield todo

    def add(self, commit: Commit) -> None:
        """Counts a shard that this run has finished.

        Raises:
            UserError: too many bad images.
        """
        self.report.images += commit.rows
        self.report.bad += commit.bad
        for part, seconds in commit.seconds.items():
            self.report.seconds[part] += seconds
        self.check(commit)

    def check(self, commit: Commit) -> None:
        """Counts only the bad images of a shard that another run has finished; raises as `add`."""
        self._reasons.update(commit.reasons)
        self._refuse_too_many()

    def closed(self) -> Report:
        """The report, with the time that has passed."""
        self.report.wall_seconds = time.perf_counter() - self._begun
        return self.report

    def _refuse_too_many(self) -> None:
        bad, planned = self._reasons.total(), self._ledger.dataset.images
        if bad <= (max(1, self._max_bad * planned) if self._max_bad else 0):
            return
        reason, count = self._reasons.most_common(1)[0]
        alike = (item for item in self._ledger.quarantined() if f"{item['stage']}: {item['error']}" == reason)
        such = ""
        if example := next(alike, None):  # none where another process takes their shards back
            such = f", such as {self._ledger.image_root}/{example['uri']}: {example['message']}"
        raise UserError(
            f"{self._ledger.root}: {bad:,} of {planned:,} images are bad so far, more than --max-bad {self._max_bad:g} "
            f"allows; {count:,} fail in {reason}{such}; see all with sea-pipeline status; mend the input, "
            "or give a larger --max-bad, and run the command again"
        )


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

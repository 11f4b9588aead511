"""Runs any stage over the shards of a ledger: skips what is done, tries again, quarantines, counts."""

import resource
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sea_pipeline.errors import UserError
from sea_pipeline.ledger import Ledger
from sea_pipeline.records import Commit
from sea_pipeline.samples import BadSample, Sample
from sea_pipeline.sources import Source, open_source
from sea_pipeline.storage import publish, publish_bytes

ATTEMPTS = 2


class ShardResult(NamedTuple):
    """What a stage says of a shard that it has written."""

    rows: int
    bad: list[BadSample]
    seconds: dict[str, float]
    first_image_sha256: str | None


class Stage(Protocol):
    """Work on one shard at a time; its result is a function of the samples and the fingerprint alone."""

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

    def finish(self, ledger: Ledger) -> list[Path]:
        """Writes what follows from all shards together; returns the files that the manifest must name."""
        ...


@dataclass
class Report:
    """What a run did; what earlier runs had done does not count."""

    images: int = 0
    """Images that got a row."""
    bad: int = 0
    wall_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By part, summed over shards; decoding is summed over its threads, too."""
    failed: dict[int, str] = field(default_factory=dict)
    """Shards that failed `ATTEMPTS` times, with the last error; the tracebacks are in `logs/`."""


def run(
    ledger: Ledger,
    stage: Stage,
    *,
    max_bad: float,
    advance: Callable[[int], None] = lambda _: None,
) -> Report:
    """Finishes what is missing, one shard after the other, and writes the manifest when nothing is.

    Args:
        ledger: the output folder.
        stage: the work on one shard.
        max_bad: stop as soon as more than this share of all planned images is bad; 0 allows none, else one is allowed.
        advance: told how many images have passed; a negative number where a shard starts again.

    Raises:
        UserError: too many bad images, or the output cannot be written. What is committed stays.
    """
    report = Report()
    begun = time.perf_counter()
    bad_count = _BadCount(ledger, max_bad)
    source = open_source(ledger.image_root)
    for shard in ledger.missing():
        try:
            commit = _with_attempts(ledger, stage, source, shard, advance)
        except _ShardFailedError as failure:
            report.failed[shard] = str(failure)
            continue
        report.images += commit.rows
        report.bad += commit.bad
        for part, seconds in commit.seconds.items():
            report.seconds[part] += seconds
        bad_count.add(commit)
    if not report.failed:
        ledger.finish(stage.finish(ledger))
    report.wall_seconds = time.perf_counter() - begun
    return report


class _BadCount:
    """The bad images of all finished shards; refuses to go on when they are too many."""

    def __init__(self, ledger: Ledger, max_bad: float) -> None:
        self._ledger = ledger
        self._max_bad = max_bad
        self._reasons = ledger.done().reasons
        self._check()

    def add(self, commit: Commit) -> None:
        self._reasons.update(commit.reasons)
        self._check()

    def _check(self) -> None:
        bad, planned = self._reasons.total(), self._ledger.dataset.images
        if bad <= (max(1, self._max_bad * planned) if self._max_bad else 0):
            return
        reason, count = self._reasons.most_common(1)[0]
        example = next(item for item in self._ledger.quarantined() if f"{item['stage']}: {item['error']}" == reason)
        path = f"{self._ledger.image_root}/{example['uri']}"
        raise UserError(
            f"{self._ledger.root}: {bad:,} of {planned:,} images are bad so far, more than --max-bad {self._max_bad:g} "
            f"allows; {count:,} fail in {reason}, such as {path}: {example['message']}; "
            "see all with sea-pipeline status; mend the input, or give a larger --max-bad, and run the command again"
        )


class _ShardFailedError(Exception):
    """A shard failed `ATTEMPTS` times."""


def _with_attempts(ledger: Ledger, stage: Stage, source: Source, shard: int, advance: Callable[[int], None]) -> Commit:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _process(ledger, stage, source, shard, attempt, advance)
        except UserError:
            raise
        except Exception as error:
            last = error
            log = traceback.format_exc().encode()
            publish_bytes(ledger.root / "logs" / f"{shard:05d}-attempt-{attempt}.log", log, ledger.root)
    raise _ShardFailedError(f"{type(last).__name__}: {' '.join(str(last).split())[:300]}") from last


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

    try:
        with publish(ledger.shard_path(shard), ledger.root) as scratch:
            result = stage.process(samples, source, scratch, footer, count)
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
        peak_memory_bytes=_peak_memory_bytes(),
        attempt=attempt,
    )


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

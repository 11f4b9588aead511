"""Make one attempt at a shard and write its rows, its quarantine and its commit."""

import logging
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from sea_pipeline.core.errors import UserError, with_type
from sea_pipeline.core.progress import Advance, process_peak_bytes
from sea_pipeline.execution.stage import Stage
from sea_pipeline.inputs.pixels import OF_ONE_FILE, BadImageError
from sea_pipeline.inputs.samples import BadSample, Sample
from sea_pipeline.inputs.sources import Source, kind_of, open_source
from sea_pipeline.inputs.sources.base import shown_file
from sea_pipeline.output.folder import LOGS
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import Commit
from sea_pipeline.storage.locks import locked
from sea_pipeline.storage.paths import entries, is_url
from sea_pipeline.storage.publish import publish, publish_bytes

_LOG = logging.getLogger(__name__)
ATTEMPTS = 2
_PAUSES = 0.2, 2.0
"""Seconds before a read that failed is tried again in the last attempt."""


class ShardError(Exception):
    """An attempt at a shard failed, and its log is written.

    The message is one line.
    """


def process_shard(ledger: Ledger, stage: Stage, source: Source, shard: int, attempt: int, advance: Advance) -> Commit:
    """Make one attempt at a shard, and return its commit or that of a faster run.

    Raises:
        ShardError: the attempt failed; `logs/` has the traceback.
        UserError: the user must mend something, such as an output that cannot be written.
    """
    try:
        return _process(ledger, stage, source, shard, attempt, advance)
    except UserError:
        raise
    except Exception as error:
        log_attempt(ledger, shard, attempt, traceback.format_exc())
        raise ShardError(with_type(error)) from error


def log_attempt(ledger: Ledger, shard: int, attempt: int, text: str) -> None:
    """Write the log of a failed attempt.

    The first attempt removes the logs that an earlier run has kept for the shard.
    """
    _LOG.debug("shard %d: attempt %d failed: %s", shard, attempt, text.rstrip().rpartition("\n")[2])
    for log in entries(ledger.root / LOGS) if attempt == 1 else ():
        if log.name.startswith(f"{shard:05d}-attempt-"):
            log.unlink(missing_ok=True)
    publish_bytes(ledger.root / LOGS / f"{shard:05d}-attempt-{attempt}.log", text.encode(), ledger.root)


class LastAttempt:
    """A source with which a few images that still cannot be read are bad, instead of failing their shard.

    Otherwise a sick sector, or a server's lasting error for one file, would keep a folder from ever being finished.

    Args:
        source: reads the images.
        images: the number of the shard's images. If more than a hundredth of them, and more than one, cannot be read,
            the disk or the server is at fault, and the shard fails.
    """

    def __init__(self, source: Source, images: int) -> None:
        self.readers, self.random_access, self.where = source.readers, source.random_access, source.where
        self.refuse_changed = source.refuse_changed
        self._source = source
        self._most = max(1, images // 100)
        self._given_up: set[str] = set()
        self._lock = threading.Lock()

    def read(self, uri: str) -> bytes:
        """See `Source`."""
        pauses = list(_PAUSES)
        while True:
            try:
                return self._source.read(uri)
            except OSError as error:
                if error.errno not in OF_ONE_FILE or not (pauses or self._give_up(uri)):
                    raise
                if not pauses:
                    message = f"{error.strerror}; tried again and again; when it can be read, give --retry-bad"
                    raise BadImageError("read", type(error).__name__, message) from error
            time.sleep(pauses.pop(0))

    def _give_up(self, uri: str) -> bool:
        with self._lock:
            self._given_up.add(uri)
            return len(self._given_up) <= self._most


@contextmanager
def _refusing_changed(source: Source, samples: Sequence[Sample]) -> Iterator[None]:
    """Refuse files that have changed by the end of the block, also if it fails."""
    uris = [sample.uri for sample in samples if sample.problem is None]
    try:
        yield
    except Exception:
        source.refuse_changed(uris)  # a changed file explains other faults
        raise
    source.refuse_changed(uris)


def _refuse_refused(ledger: Ledger, shard: int, samples: Sequence[Sample], bad: Sequence[BadSample]) -> None:
    """Refuse a shard of which a server or a store refuses many images, and by now those that it gave, too.

    A login that has expired says nothing about an image. In lists of URLs below `https://`, each image may be on
    another server, which is refused for good.

    Raises:
        UserError: it is refused.
    """
    root = ledger.image_root.removeprefix(kind_of(ledger.image_root))
    refused = [each for each in bad if (each.stage, each.error) == ("read", "PermissionError")]
    most = max(1, ledger.max_bad * min(ledger.dataset.shard_size, ledger.dataset.images))
    if not is_url(root) or root.endswith("://") or len(refused) <= most or _gives_others(ledger, samples, bad):
        return
    example = f"{shown_file(root, refused[0].sample.uri)}: {refused[0].message}"
    raise UserError(
        f"{ledger.root}: shard {shard}: {len(refused):,} of its {len(samples):,} images are refused, such as "
        f"{example}; renew the credentials or get the right to read them, and run the same command again; only if they "
        "are refused for good, give a larger --max-bad, which makes them bad images"
    )


def _gives_others(ledger: Ledger, samples: Sequence[Sample], bad: Sequence[BadSample]) -> bool:
    """Tell whether one of the images that could be read can still be read."""
    lost = {each.sample for each in bad}
    good = next((sample for sample in samples if sample not in lost), None)
    if good is None:
        return False
    with suppress(BadImageError):
        open_source(ledger.image_root).read(good.uri)  # a new one, because a table's keeps rows
        return True
    return False


class _FasterError(Exception):
    """Another run has committed the shard in the meantime."""


def _process(ledger: Ledger, stage: Stage, source: Source, shard: int, attempt: int, advance: Advance) -> Commit:
    samples = ledger.samples(shard)
    if attempt >= ATTEMPTS and source.random_access:  # a stream that has failed has lost its place
        source = LastAttempt(source, len(samples))
    footer = {"fingerprint": ledger.dataset.fingerprint, "shard": shard, **ledger.dataset.fields}
    passed = 0

    def count(images: int) -> None:
        nonlocal passed
        passed += images
        advance(images)

    with ExitStack() as until_committed:
        try:
            with publish(ledger.shard_path(shard), ledger.root) as scratch:
                with _refusing_changed(source, samples):
                    result = stage.process(samples, source, scratch, footer, count)
                _refuse_refused(ledger, shard, samples, result.bad)
                # Another run's rows may differ in a score's last bit, so file and commit must come from the same run.
                until_committed.enter_context(locked(ledger.root))
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

"""Add up the images, seconds and failed shards of a run, and end it if too many images are bad."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sea_pipeline.core.errors import UserError
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import Commit
from sea_pipeline.storage.locks import locked

_LOG = logging.getLogger(__name__)
_ROUNDS = 3


@dataclass
class RunReport:
    """The sums of one run, without the work of other runs."""

    images: int = 0
    """The number of images that got a row."""
    bad: int = 0
    wall_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds by part of the work, summed over shards and workers. Decoding is summed over its threads, too."""
    failed: dict[int, str] = field(default_factory=dict)
    """Shards that failed too often, with the last error; the tracebacks are in `logs/`."""
    workers: int = 1
    """The largest number of processes that worked at once."""
    at_once: int = 1
    """The number of shards that each of them did at once."""


class RunTotals:
    """Adds up the work of a run, and ends the run if too many images of the folder are bad."""

    def __init__(self, ledger: Ledger, max_bad: float, at_once: int = 1) -> None:
        self.report = RunReport(at_once=at_once)
        self._begun = time.perf_counter()
        self._ledger = ledger
        self._max_bad = max_bad
        self._reasons = ledger.done().reasons
        self._refuse_too_many()

    def rounds(self, shards: range | None, finish: Callable[[], object]) -> Iterator[list[int]]:
        """Yield the missing shards, then finish the folder.

        A run that begins beside this one takes bad shards back, so there are up to three rounds.

        Args:
            shards: do only these; None for all.
            finish: writes the manifest.
        """
        for left in reversed(range(_ROUNDS)):
            if todo := self._of_this_run(self._ledger.missing(), shards):
                if left < _ROUNDS - 1:  # the bad images of shards taken back were counted before
                    self._reasons = self._ledger.done().reasons
                yield todo
            if self._is_over(shards, finish, is_last=left == 0):
                return

    def _of_this_run(self, missing: list[int], shards: range | None) -> list[int]:
        return [shard for shard in missing if shard not in self.report.failed and (shards is None or shard in shards)]

    def _is_over(self, shards: range | None, finish: Callable[[], object], *, is_last: bool) -> bool:
        """Finish the folder if that is due, and tell whether this run has nothing more to do.

        A run for all shards without a failure must finish it, or say why it cannot. An extended folder is finished by
        the run that extended it. Other runs take shards back under the same lock.
        """
        with locked(self._ledger.root):
            if Ledger.open(self._ledger.root).dataset.shards != self._ledger.dataset.shards:
                return True
            missing = self._ledger.missing()
            if self._of_this_run(missing, shards) and not is_last:
                return False
            if not missing or (shards is None and not self.report.failed):
                finish()
        return True

    def add(self, commit: Commit) -> None:
        """Count a shard that this run has finished.

        Raises:
            UserError: too many images of the folder are bad.
        """
        spent = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in commit.seconds.items())
        _LOG.debug("shard %d: %d images, %d bad; %s", commit.shard, commit.rows, commit.bad, spent)
        self.report.images += commit.rows
        self.report.bad += commit.bad
        for part, seconds in commit.seconds.items():
            self.report.seconds[part] += seconds
        self.check(commit)

    def check(self, commit: Commit) -> None:
        """Count only the bad images of a shard that another run has finished.

        Raises:
            UserError: see `add`.
        """
        self._reasons.update(commit.reasons)
        self._refuse_too_many()

    def closed(self) -> RunReport:
        """Return the report with the time that has passed."""
        self.report.wall_seconds = time.perf_counter() - self._begun
        return self.report

    def _refuse_too_many(self) -> None:
        bad, planned = self._reasons.total(), self._ledger.dataset.images
        if bad <= (max(1, self._max_bad * planned) if self._max_bad else 0):
            return
        reason, count = self._reasons.most_common(1)[0]
        alike = (item for item in self._ledger.quarantined() if f"{item['stage']}: {item['error']}" == reason)
        such = ""
        if example := next(alike, None):  # none if another process takes their shards back
            such = f", such as {self._ledger.image_root}/{example['uri']}: {example['message']}"
        mend = "mend the input"
        if reason == "read: FileNotFoundError":
            mend = f"give --image-root, where paths in a list start, or {mend}"
        elif reason == "read: PermissionError":
            mend = f"get the right to read them, or {mend}"
        raise UserError(
            f"{self._ledger.root}: {bad:,} of {planned:,} images are bad so far, more than --max-bad {self._max_bad:g} "
            f"allows; {count:,} fail in {reason}{such}; see all with sea-pipeline status; {mend}, "
            "or give a larger --max-bad, and run the command again"
        )

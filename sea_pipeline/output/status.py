"""Measure a folder's progress, speed and failures from its files alone, while another process may write to it."""

import datetime
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from sea_pipeline.output.folder import LOGS, FolderProgress
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import Commit
from sea_pipeline.storage.paths import entries

_SHARDS = 50
"""The number of latest shards over which the rate is measured."""
_PAUSE = 60.0
"""Seconds without a finished shard that count as a pause, or three times the slowest shard's time if that is longer."""


class Throughput(NamedTuple):
    """The speed of a folder, with None if it does not grow or too few shards are finished to tell."""

    images_per_second: float | None
    """Rate over the latest shards of all processes, with bad images and without pauses between runs."""
    seconds_left: float | None
    """The time that is left at this rate."""
    seconds_since: float | None
    """The time since the latest shard was finished."""


def throughput(ledger: Ledger, now: datetime.datetime, commits: Iterable[Commit]) -> Throughput:
    """Measure the pace of a folder with these valid commits at a time, which must have a time zone."""
    commits = sorted(commits, key=_finished)
    if not commits:
        return Throughput(None, None, None)
    since = max(0.0, (now - _finished(commits[-1])).total_seconds())
    longest = max(_PAUSE, 3 * max(sum(commit.seconds.values()) for commit in commits[-_SHARDS:]))
    latest = _unbroken(commits[-_SHARDS:], longest)
    spent = (_finished(latest[-1]) - _finished(latest[0])).total_seconds()
    if not spent:
        return Throughput(None, None, since)
    rate = sum(map(_images, latest[1:])) / spent
    left = ledger.dataset.images - sum(map(_images, commits))
    return Throughput(rate, left / rate if since < longest else None, since)


def failing_shards(ledger: Ledger) -> dict[int, str]:
    """Return the last line of the latest log of each shard that has failed and is not finished since."""
    found: dict[int, str] = {}
    for log in entries(ledger.root / LOGS):  # sorted by name, so a shard's last attempt comes last
        shard, _, rest = log.name.partition("-attempt-")
        number = int(shard) if rest and shard.isascii() and shard.isdecimal() else ledger.dataset.shards
        if number < ledger.dataset.shards and ledger.commit(number) is None:
            lines = log.read_bytes().decode(errors="replace").strip().splitlines()
            found[number] = lines[-1] if lines else ""
    return found


def _finished(commit: Commit) -> datetime.datetime:
    return datetime.datetime.fromisoformat(commit.finished)


def _images(commit: Commit) -> int:
    return commit.rows + commit.bad


def _unbroken(commits: list[Commit], longest: float) -> list[Commit]:
    """Return the commits since the last pause."""
    begun = 0
    for position, (one, other) in enumerate(pairwise(commits)):
        if (_finished(other) - _finished(one)).total_seconds() > longest:
            begun = position + 1
    return commits[begun:]


def status_to_json(ledger: Ledger, commits: Sequence[Commit] | None = None) -> dict[str, Any]:
    """Report the progress and the speed of an output folder as JSON values.

    Another process may be writing to it. See `Throughput`. The valid commits are read if they are not given, but once:
    in a store elsewhere each takes several requests.
    """
    commits = list(ledger.commits()) if commits is None else commits
    done, speed = FolderProgress.of(commits), throughput(ledger, datetime.datetime.now(datetime.UTC), commits)
    return {
        "kind": ledger.dataset.kind,
        "finished": ledger.is_complete(commits),
        "shards": ledger.dataset.shards,
        "shards_done": done.shards,
        "images": ledger.dataset.images,
        "images_done": done.images,
        "images_bad": done.bad,
        "reasons": dict(done.reasons),
        "bytes": done.bytes,
        "last_finished": done.last,
        "images_per_second": speed.images_per_second,
        "seconds_left": speed.seconds_left,
        "failing": failing_shards(ledger),
    }

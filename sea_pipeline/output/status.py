"""How far a folder is, how fast it grows and what fails in it, from its files alone: another process may be at it."""

import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from sea_pipeline.output.folder import LOGS
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import Commit
from sea_pipeline.storage.paths import entries

_SHARDS = 50
"""The latest ones, over which the rate is taken."""
_PAUSE = 60.0
"""Seconds without a finished shard that are a pause, or three times what the slowest shard took."""


class Pace(NamedTuple):
    """How fast a folder grows; None where it does not, or too few shards are finished to tell."""

    images_per_second: float | None
    """Of the latest shards, whoever made them, bad images included; pauses between runs do not count."""
    seconds_left: float | None
    """At this rate."""
    seconds_since: float | None
    """Since the latest shard was finished."""


def pace(ledger: Ledger, now: datetime.datetime) -> Pace:
    """The pace of a folder at a time, with its zone."""
    commits = sorted(ledger.commits(), key=_finished)
    if not commits:
        return Pace(None, None, None)
    since = max(0.0, (now - _finished(commits[-1])).total_seconds())
    longest = max(_PAUSE, 3 * max(sum(commit.seconds.values()) for commit in commits[-_SHARDS:]))
    latest = _unbroken(commits[-_SHARDS:], longest)
    spent = (_finished(latest[-1]) - _finished(latest[0])).total_seconds()
    if not spent:
        return Pace(None, None, since)
    rate = sum(map(_images, latest[1:])) / spent
    left = ledger.dataset.images - sum(map(_images, commits))
    return Pace(rate, left / rate if since < longest else None, since)


def failing(ledger: Ledger) -> dict[int, str]:
    """The last line of the latest log of every shard that has failed and is not finished since, by shard."""
    found: dict[int, str] = {}
    for log in entries(ledger.root / LOGS):  # by name, so that a shard's attempts come in their order
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
    """The commits since the last pause."""
    begun = 0
    for place, (one, other) in enumerate(pairwise(commits)):
        if (_finished(other) - _finished(one)).total_seconds() > longest:
            begun = place + 1
    return commits[begun:]


def status_to_json(ledger: Ledger) -> dict[str, Any]:
    """For machines: how far an output folder is, and how fast it grows while another process is at it; see `Pace`."""
    done, speed = ledger.done(), pace(ledger, datetime.datetime.now(datetime.UTC))
    return {
        "kind": ledger.dataset.kind,
        "finished": ledger.complete,
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
        "failing": failing(ledger),
    }

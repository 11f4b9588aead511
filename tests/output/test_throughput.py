"""Rate, time left and failures of a folder that another process fills, from planted commits."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from sea_pipeline.execution.local import run
from sea_pipeline.execution.shard import log_attempt
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.status import failing_shards, throughput
from tests.support.worker_world import PlantedStage, planted_ledger

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """100 images in shards of 10, eight of them finished."""
    ledger = planted_ledger(tmp_path / "out", images=100, shard_size=10)
    run(ledger, PlantedStage(tmp_path / "none"), max_bad=1, shards=range(8))
    return ledger


def finished_at(ledger: Ledger, *seconds: float) -> None:
    for shard, second in enumerate(seconds):
        path = ledger.root / "commits" / f"{shard:05d}.json"
        record = json.loads(path.read_text())
        record["finished"] = (NOON + datetime.timedelta(seconds=second)).isoformat(timespec="milliseconds")
        path.write_text(json.dumps(record))


def test_the_rate_is_that_of_the_latest_shards_without_the_night(ledger: Ledger) -> None:
    """Three shards, a night, then five at 4 s each, out of order: 10 images in 4 s, 20 images to go."""
    finished_at(ledger, 0, 10, 20, 40_008, 40_004, 40_000, 40_012, 40_016)
    found = throughput(ledger, NOON + datetime.timedelta(seconds=40_017), ledger.commits())
    assert found.images_per_second == pytest.approx(2.5)
    assert found.seconds_left == pytest.approx(20 / 2.5)
    assert found.seconds_since == pytest.approx(1.0)


def test_nothing_is_left_to_wait_for_where_nobody_works(ledger: Ledger) -> None:
    finished_at(ledger, *range(0, 32, 4))
    found = throughput(ledger, NOON + datetime.timedelta(hours=2), ledger.commits())
    assert found.seconds_left is None
    assert found.images_per_second == pytest.approx(2.5)


def test_one_shard_has_no_rate(tmp_path: Path) -> None:
    ledger = planted_ledger(tmp_path / "out")
    assert throughput(ledger, NOON, ledger.commits()) == (None, None, None)
    run(ledger, PlantedStage(tmp_path / "none"), max_bad=1, shards=range(1))
    assert throughput(ledger, NOON, ledger.commits())[:2] == (None, None)


@pytest.mark.parametrize("options", [["--json"], []])
def test_status_reads_each_commit_once(
    ledger: Ledger, command: Any, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    run(ledger, PlantedStage(ledger.root.parent / "none"), max_bad=1)
    read: list[int] = []
    plain = Ledger.recorded
    monkeypatch.setattr(Ledger, "recorded", lambda self, shard: read.append(shard) or plain(self, shard))
    assert command("status", ledger.root, *options)[0] == 0
    assert sorted(read) == list(range(10))


def test_what_has_failed_and_is_not_done_since_is_told_by_its_last_log(ledger: Ledger, command: Any) -> None:
    for attempt in (1, 2):
        log_attempt(ledger, 9, attempt, f"Traceback\n  …\nRuntimeError: number {attempt}\n")
    log_attempt(ledger, 3, 1, "done since\n")
    assert failing_shards(ledger) == {9: "RuntimeError: number 2"}
    code, stdout, _ = command("status", ledger.root, "--json")
    assert code == 0
    answer = json.loads(stdout)
    assert answer["failing"] == {"9": "RuntimeError: number 2"}
    assert answer["images_per_second"] > 0
    assert answer["seconds_left"] > 0
    log_attempt(ledger, 9, 1, "another day: the disk is gone\n")
    assert failing_shards(ledger) == {9: "another day: the disk is gone"}
    stdout = command("status", ledger.root)[1]
    assert "shard 9 fails" in stdout
    assert "images/s" in stdout
    assert "left" in stdout

"""Kills, faults and rivals while a folder is written to a store elsewhere: it holds what is whole, and nothing else."""

import hashlib
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.output import begin
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage.hashing import file_sha256
from sea_pipeline.storage.paths import entries, place
from sea_pipeline.storage.publish import publish_bytes
from sea_pipeline.storage.remote import RemotePath
from sea_pipeline.storage.retry import StoreError
from tests.support.contents import rows, stored
from tests.support.kills import killed_around
from tests.support.photo_forms import failing_s3
from tests.support.programs import Begin, labelling
from tests.support.world import ColourEncoder, Label, draw_folder, word_file

pytestmark = pytest.mark.usefixtures("no_long_waits", "empty_memory")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    photos = draw_folder(tmp_path / "photos", 8)
    (photos / "003.png").write_bytes(b"bad")
    return photos


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", range(1, 11))
def test_a_kill_around_any_upload_loses_nothing(
    label: Label, photos: Path, tmp_path: Path, moment: str, call: int
) -> None:
    """Plan, words, dataset, data, quarantine, commit, data, commit, words.parquet, manifest."""
    label(images=str(photos))
    with killed_around(RemotePath, "upload", call, before=moment == "before"):
        label(images=str(photos), out="memory://x")
    happened = call - (moment == "before")
    if call > 3:
        ledger = Ledger.open(place("memory://x"))
        assert check_files(ledger).problems == []
        assert len(ledger.missing()) == 2 - (happened >= 6) - (happened >= 8)
    label(images=str(photos), out="memory://x")
    assert stored("memory://x") == stored(str(tmp_path / "labels"))


def test_sigkill_at_random_moments_loses_nothing(label: Label, tmp_path: Path, s3: str, program: Begin) -> None:
    photos = draw_folder(tmp_path / "photos", 32)
    label(images=str(photos), shard_size=2)
    words = word_file(tmp_path / "colours.txt")
    command = labelling(photos, words, "s3://bucket/killed", "--shard-size", 2)
    moments = random.Random(0)
    left = []
    for _ in range(2):
        done = len(entries(place("s3://bucket/killed/commits")))
        process = program(*command)
        while len(entries(place("s3://bucket/killed/commits"))) == done:
            assert process.returncode is None
            time.sleep(0.2)
        time.sleep(moments.uniform(0, 0.3))
        process.signal(signal.SIGKILL)
        process.wait()
        ledger = Ledger.open(place("s3://bucket/killed"))
        assert check_files(ledger).problems == []
        left.append(len(ledger.missing()))
    assert left == sorted(left, reverse=True)
    assert 0 < left[-1] < 16
    assert label(images=str(photos), shard_size=2, out="s3://bucket/killed").report.images == 2 * left[-1]
    assert stored("s3://bucket/killed") == stored(str(tmp_path / "labels"))


@pytest.mark.parametrize("status", [500, 503])
def test_a_store_that_fails_for_a_while_costs_nothing(
    label: Label, photos: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    label(images=str(photos))
    out = f"s3://bucket/fails{status}"
    with failing_s3(monkeypatch, s3, status, faults=1, all_files=True) as proxy:
        run = label(images=str(photos), out=out)
        assert (run.report.images, run.report.bad, run.report.failed) == (7, 1, {})
        assert rows(open_labels(out)) == rows(open_labels(tmp_path / "labels"))
    asked = {name: count for name, count in proxy.asked.items() if name.startswith("PUT")}
    assert len(asked) == 10
    assert min(asked.values()) == 2
    assert {commit.attempt for commit in Ledger.open(place(out)).commits()} == {1}
    assert stored(out) == stored(str(tmp_path / "labels"))


def test_a_store_that_goes_on_failing_is_one_line_and_what_is_done_stays(
    label: Label, encoder: ColourEncoder, photos: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(images=str(photos))
    plain, seen = encoder.patches, 0
    with failing_s3(monkeypatch, s3, 503, faults=0, all_files=True) as proxy, monkeypatch.context() as patch:

        def patches(pixels: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += 1
            proxy.faults = 10_000 if seen > 1 else 0  # goes down as the second shard is made
            return plain(pixels)

        patch.setattr(encoder, "patches", patches)
        with pytest.raises(StoreError, match="tried again and again") as error:
            label(images=str(photos), out="s3://bucket/down", max_bad=0.5)
    assert "\n" not in str(error.value)
    assert Ledger.open(place("s3://bucket/down")).missing() == [1]
    assert label(images=str(photos), out="s3://bucket/down", max_bad=0.5).report.images == 4
    assert stored("s3://bucket/down") == stored(str(tmp_path / "labels"))


@pytest.mark.parametrize(
    ("out", "faults", "expected"),
    [
        ("s3://bucket/dead", 10_000, "cannot be read: tried again and again"),
        ("s3://nobucket/x", 0, "cannot be written: The specified bucket does not exist"),
        ("gopher://x/y", 0, "expected a URL that fsspec knows"),
        ("s3://me:secret@bucket/x", 0, "expected no password in a URL"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line(
    command: Any, photos: Path, words: Path, s3: str, monkeypatch: pytest.MonkeyPatch, out: str, faults: int,
    expected: str,
) -> None:  # fmt: skip
    with failing_s3(monkeypatch, s3, 503, faults, all_files=True):
        code, _, said = command("label", "--images", photos, "--wordlist", words, "--top-n", 3, "--out", out)
    assert (code, said.count("\n"), said[:7]) == (1, 1, "error: ")
    assert expected in said
    assert "secret" not in said


def test_missing_rights_are_one_line(label: Label, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", refused)
    with pytest.raises(
        StoreError, match=r"x/plan\.parquet: cannot be written: Access Denied; the rights to list, read"
    ):
        label(images=str(photos), out="memory://x")


@pytest.mark.parametrize(
    ("moment", "rival", "expected"),
    [
        ("entries", {}, None),
        ("entries", {"top_n": 2}, "top_n: 2 there, 3 asked for"),
        ("write_plan", {}, None),
        ("write_plan", {"top_n": 2}, "top_n: 2 there, 3 asked for"),
        ("write_plan", {"wordlist": "short.txt"}, r"words\.txt: another run with other settings or images has begun"),
        ("write_plan", {"images": "other"}, r"plan\.parquet: another run with other settings or images"),
    ],
)
def test_of_two_that_begin_at_once_the_first_one_decides(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, rival: dict[str, Any],
    expected: str | None,
) -> None:  # fmt: skip
    """The rival begins and finishes between our looking for a run and for strangers, or our writing of a first file."""
    (tmp_path / "short.txt").write_text("red\ngreen\nblue\n")
    draw_folder(tmp_path / "other", 5)
    settings = {"images": str(photos)} | {
        name: str(tmp_path / v) if isinstance(v, str) else v for name, v in rival.items()
    }
    plain, out = getattr(begin, moment), "memory://x"

    def beaten(*given: Any) -> Any:
        monkeypatch.setattr(begin, moment, plain)
        label(out=out, **settings)
        return plain(*given)

    monkeypatch.setattr(begin, moment, beaten)
    if expected is None:
        assert label(images=str(photos), out=out).report.images == 0
    else:
        with pytest.raises(UserError, match=expected):
            label(images=str(photos), out=out)
    assert getattr(begin, moment) is plain
    label(out=tmp_path / "alone", **settings)
    assert stored(out) == stored(str(tmp_path / "alone"))


def test_two_runs_at_once_do_no_harm(label: Label, photos: Path, tmp_path: Path, s3: str, program: Begin) -> None:
    label(images=str(photos))
    words = word_file(tmp_path / "colours.txt")
    command = labelling(photos, words, "s3://bucket/both", "--shard-size", 4)
    both = [program(*command) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert stored("s3://bucket/both") == stored(str(tmp_path / "labels"))


def test_of_many_that_create_a_file_one_succeeds(s3: str) -> None:
    path = place("s3://bucket/race/file")

    def create(number: int) -> bool:
        try:
            publish_bytes(path, bytes([number]), path.parent, exclusive=True)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert path.read_bytes() == bytes([won.index(True)])
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()

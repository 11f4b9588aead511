"""Folders in a store elsewhere: the same bytes as on this machine, whoever reads; kills, faults and rivals."""

import hashlib
import json
import multiprocessing
import pickle
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import pytest
import torch

from sea_pipeline import label_cache, open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.sources import list_samples
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
from tests.support.refused import refused, refuses
from tests.support.world import BATCHES, ColourEncoder, Label, Shelved, draw_but_one, draw_folder

pytestmark = pytest.mark.usefixtures("no_long_waits", "empty_memory")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_but_one(tmp_path / "photos", 8)


def test_a_store_gets_the_bytes_that_a_folder_gets(label: Label, photos: Path, tmp_path: Path, s3: str) -> None:
    url = "s3://bucket/a folder/x"
    label(images=str(photos))
    run = label(images=str(photos), out=url)
    assert (run.report.images, run.report.bad) == (7, 1)
    assert stored(url) == stored(str(tmp_path / "labels"))
    assert label(images=str(photos), out=url).report.images == 0
    there, here = open_labels(url), open_labels(tmp_path / "labels")
    assert str(there.path) == url
    assert rows(there) == rows(here)
    assert there.mean_similarity().tolist() == here.mean_similarity().tolist()
    assert list(there.quarantine()) == list(here.quarantine())
    assert [table.equals(other) for table, other in zip(there.tables(), here.tables(), strict=True)] == [True, True]
    cache = label_cache.label_cache(there)
    assert {name: cache[name].word_ids.tolist() for name in here} == {n: here[n].word_ids.tolist() for n in here}
    assert not list((tmp_path / "cache" / ".tmp").iterdir())


def test_a_store_is_extended(label: Label, photos: Path, tmp_path: Path) -> None:
    for out in ("memory://x", str(tmp_path / "labels")):
        label(images=str(photos), out=out)
    draw_folder(photos / "more", 5, seed=3)
    with pytest.raises(UserError, match="--extend"):
        label(images=str(photos), out="memory://x")
    for out in ("memory://x", str(tmp_path / "labels")):
        assert label(images=str(photos), out=out, extend=True).report.images == 5
    assert stored("memory://x") == stored(str(tmp_path / "labels"))


@pytest.mark.slow
def test_an_extension_that_another_run_has_planned_counts(label: Label, photos: Path) -> None:
    label(images=str(photos), out="memory://x")
    draw_folder(photos / "c", 1, seed=3)
    store = fsspec.filesystem("memory")
    before = store.cat_file("/x/dataset.json")
    label(images=str(photos), out="memory://x", extend=True)
    planned = store.cat_file("/x/plan-00001.parquet")
    store.pipe_file("/x/dataset.json", before)  # as if the run that planned it were killed then
    draw_folder(photos / "d", 2, seed=4)
    assert label(images=str(photos), out="memory://x", extend=True).report.images == 2
    assert store.cat_file("/x/plan-00001.parquet") == planned
    assert [part.images for part in Ledger.open(place("memory://x")).dataset.parts] == [8, 1, 2]
    label(images=str(photos), out="memory://whole")
    assert rows(open_labels("memory://x")) == rows(open_labels("memory://whole"))


def test_the_commands_read_a_store(command: Any, photos: Path, words: Path, s3: str) -> None:
    out = "s3://bucket/commands"
    code, stdout, said = command(*labelling(photos, words, out))
    assert (code, "7 labelled, 1 bad" in stdout, out in said) == (0, True, True)
    assert json.loads(command("status", out, "--json")[1])["finished"] is True
    assert command("verify", out)[0] == 0
    assert json.loads(command("inspect", out, "a/001.png", "--json")[1])["grid"] == [3, 4]
    shard = place(out) / "labels" / "part-00000-of-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    fsspec.filesystem("s3").pipe_file(shard.path, bytes(data))
    code, _, said = command("verify", out)
    assert (code, "part-00000-of-00001.parquet: damaged" in said) == (1, True)


def test_output_inside_the_input_is_refused(label: Label, photos: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put_file(str(photos / "000.png"), "/photos/000.png")
    with pytest.raises(UserError, match="lies inside the input folder"):
        label(images="memory://photos", out="memory://photos/labels")
    store.pipe_file("/taken/thesis.tex", b"")
    with pytest.raises(UserError, match=r"found 'thesis\.tex' in it"):
        label(images="memory://photos", out="memory://taken")
    store.pipe_file("/file", b"")
    with pytest.raises(UserError, match="expected a folder; found a file"):
        label(images="memory://photos", out="memory://file")


def test_what_others_write_is_seen_at_once(s3: str) -> None:
    folder = place("s3://bucket/listed")
    assert (entries(folder), folder.exists()) == ([], False)
    for name in ("a", "b"):
        fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(f"bucket/listed/{name}", b"")
        assert [entry.name for entry in entries(folder)] == ["a", "b"][: len(entries(folder))]
        assert (folder / name).is_file()
    assert [entry.name for entry in entries(folder)] == ["a", "b"]
    (folder / "a").unlink()
    (folder / "a").unlink(missing_ok=True)
    assert [entry.name for entry in entries(folder)] == ["b"]
    with pytest.raises(FileNotFoundError):
        (folder / "a").read_bytes()


@pytest.mark.slow
def test_a_store_travels_to_other_processes(label: Label, photos: Path, s3: str) -> None:
    label(images=str(photos), out="s3://bucket/sent")
    store = open_labels("s3://bucket/sent", verify=False)
    expected = store["000.png"].word_ids.tolist()
    assert pickle.loads(pickle.dumps(store))["000.png"].word_ids.tolist() == expected
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply_async(_word_ids, (store, "000.png")).get(500) == expected


def _word_ids(store: Any, image_id: str) -> list[list[int]]:
    words: list[list[int]] = store[image_id].word_ids.tolist()
    return words


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", range(1, 11))
def test_a_kill_around_any_upload_loses_nothing(label: Label, shelved: Shelved, moment: str, call: int) -> None:
    """Plan, words, dataset, data, quarantine, commit, data, commit, words.parquet, manifest."""
    whole = shelved(8)
    with killed_around(RemotePath, "upload", call, before=moment == "before"):
        label(images=str(whole / "photos"), out="memory://x")
    happened = call - (moment == "before")
    if call > 3:
        ledger = Ledger.open(place("memory://x"))
        assert check_files(ledger).problems == []
        assert len(ledger.missing()) == 2 - (happened >= 6) - (happened >= 8)
    label(images=str(whole / "photos"), out="memory://x")
    assert stored("memory://x") == stored(str(whole / "labels"))


def test_sigkill_at_random_moments_loses_nothing(
    label: Label, tmp_path: Path, words: Path, s3: str, program: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BATCHES, "6")
    photos = draw_folder(tmp_path / "photos", 32)
    label(images=str(photos), shard_size=2)
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


def test_a_store_that_fails_for_a_while_costs_nothing(
    label: Label, photos: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(images=str(photos))
    out = "s3://bucket/fails"
    with failing_s3(monkeypatch, s3, 500, faults=1, all_files=True) as proxy:
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
        ("zip://x::ftp://me:secret@host/y.zip", 0, "error: ftp://…@…: expected no password in a URL"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line(
    command: Any, photos: Path, words: Path, s3: str, monkeypatch: pytest.MonkeyPatch, out: str, faults: int,
    expected: str,
) -> None:  # fmt: skip
    with failing_s3(monkeypatch, s3, 503, faults, all_files=True):
        said = refuses(command, expected, *labelling(photos, words, out))
    assert "secret" not in said


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("ftp://me:secret@host/x", "a URL; set FSSPEC_FTP_USERNAME and FSSPEC_FTP_PASSWORD"),
        ("https://me:secret@host/x", """~/.netrc, and set FSSPEC_HTTP='{"client_kwargs": {"trust_env": true}}'"""),
        ("github://x/y", "github:// needs what a URL does not say; set FSSPEC_GITHUB_ORG and FSSPEC_GITHUB_REPO"),
    ],
)
def test_what_a_url_does_not_say_is_set_elsewhere(url: str, advice: str) -> None:
    with refused(advice):
        list_samples(url)


def test_missing_rights_are_one_line(label: Label, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = Mock(side_effect=PermissionError("Access Denied"))
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", denied)
    said = r"x/plan\.parquet: cannot be written: Access Denied; the rights to list, read"
    with pytest.raises(StoreError, match=said):
        label(images=str(photos), out="memory://x")


@pytest.mark.slow
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
    label: Label, photos: Path, tmp_path: Path, meanwhile: Any, moment: str, rival: dict[str, Any], expected: str | None
) -> None:
    """The rival begins and finishes between our looking for a run and for strangers, or our writing of a first file."""
    (tmp_path / "short.txt").write_text("red\ngreen\nblue\n")
    draw_folder(tmp_path / "other", 5)
    settings = {"images": str(photos)} | {
        name: str(tmp_path / v) if isinstance(v, str) else v for name, v in rival.items()
    }
    plain, out = getattr(begin, moment), "memory://x"
    meanwhile(begin, moment, lambda: label(out=out, **settings))
    if expected is None:
        assert label(images=str(photos), out=out).report.images == 0
    else:
        with pytest.raises(UserError, match=expected):
            label(images=str(photos), out=out)
    assert getattr(begin, moment) is plain
    label(out=tmp_path / "alone", **settings)
    assert stored(out) == stored(str(tmp_path / "alone"))


def test_two_runs_at_once_do_no_harm(
    label: Label, photos: Path, tmp_path: Path, words: Path, s3: str, program: Begin
) -> None:
    label(images=str(photos))
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

"""Damage is found and named."""

import json
from pathlib import Path

import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage.publish import publish_bytes
from tests.support.worker_world import planted_ledger
from tests.support.world import Label, draw_folder


@pytest.fixture
def folder(label: Label, tmp_path: Path) -> Path:
    photos = draw_folder(tmp_path / "photos", 9)
    (photos / "003.png").write_bytes(b"")
    label(images=str(photos))
    return tmp_path / "labels"


def flip(path: Path, offset: int, bit: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 1 << bit
    path.write_bytes(damaged)


def test_one_flipped_bit_anywhere_in_a_shard_is_found(folder: Path) -> None:
    shard = folder / "labels" / "part-00001-of-00003.parquet"
    whole = shard.read_bytes()
    for number, offset in enumerate(range(0, len(whole), len(whole) // 40)):
        flip(shard, offset, number % 8)
        with pytest.raises(ValueError, match=r"part-00001-of-00003\.parquet: damaged"):
            open_labels(folder)
        assert [shard.name in problem for problem in check_files(Ledger.open(folder)).problems] == [True]
        shard.write_bytes(whole)
    open_labels(folder)


def test_without_verifying_damage_is_found_when_it_is_read(folder: Path) -> None:
    whole = open_labels(folder)
    expected = {image_id: whole[image_id].word_ids.tobytes() for image_id in whole}
    shard = folder / "labels" / "part-00001-of-00003.parquet"
    held = shard.read_bytes()
    errors = []
    offsets = [*range(0, len(held), len(held) // 60), held.rindex(b"crop_box"), held.rindex(b"image_id")]
    for number, offset in enumerate(offsets):
        flip(shard, offset, number % 8)
        try:
            store = open_labels(folder, verify=False)
            found = {image_id: store[image_id].word_ids.tobytes() for image_id in store.ids if image_id in expected}
            assert all(expected[image_id] == value for image_id, value in found.items())
        except UserError as error:
            errors.append(str(error))
        shard.write_bytes(held)
    assert len(errors) > 20
    assert all(shard.name in error for error in errors)


@pytest.mark.parametrize("name", ["words.txt", "words.parquet", "quarantine/00000.parquet", "plan.parquet"])
def test_damage_to_the_other_files_is_found(folder: Path, name: str) -> None:
    flip(folder / name, (folder / name).stat().st_size // 2, 0)
    try:
        problems = check_files(Ledger.open(folder)).problems
    except UserError as error:
        problems = [str(error)]
    assert problems
    assert all(name in problem for problem in problems)


def test_a_missing_or_short_shard_is_named(folder: Path) -> None:
    shard = folder / "labels" / "part-00002-of-00003.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"part-00002.*expected [\d,]+ bytes, found"):
        open_labels(folder)
    shard.unlink()
    with pytest.raises(ValueError, match=r"part-00002.*found none"):
        open_labels(folder)


def test_records_are_strict(folder: Path) -> None:
    path = folder / "dataset.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"surprise": 1}))
    with pytest.raises(UserError, match=r"dataset\.json: damaged.*surprise"):
        open_labels(folder)
    path.write_text(json.dumps(record | {"schema_version": 99}))
    with pytest.raises(UserError, match="expected schema version 1 or 2, found 99"):
        open_labels(folder)


def test_records_that_contradict_each_other_are_refused(folder: Path) -> None:
    for name, change, expected in (
        ("manifest.json", ('"top_n": 3', '"top_n": 1'), r"manifest\.json: damaged: fields\.top_n: expected 3; found 1"),
        ("manifest.json", ('"rows": 8', '"rows": 7'), r"manifest\.json: damaged: rows: expected 8; found 7"),
        ("dataset.json", ('"top_n": 3', '"top_n": 1'), "its fingerprint is not that of its fields"),
    ):
        held = (folder / name).read_text()
        (folder / name).write_text(held.replace(*change))
        with pytest.raises(ValueError, match=expected):
            open_labels(folder)
        (folder / name).write_text(held)


def test_verify_looks_at_unfinished_folders_too(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "labels" / "part-00001-of-00003.parquet").write_bytes(b"short")
    (folder / "commits" / "00002.json").write_text("{")
    problems = check_files(Ledger.open(folder)).problems
    assert len(problems) == 2
    assert "part-00001-of-00003.parquet: expected" in problems[0]
    assert "00002.json: damaged" in problems[1]


def test_verify_misses_the_record_of_a_finished_shard(folder: Path) -> None:
    (folder / "commits" / "00001.json").unlink()
    (problem,) = check_files(Ledger.open(folder)).problems
    assert "commits/00001.json: expected the record of a finished shard; found none" in problem
    record = json.loads((folder / "commits" / "00002.json").read_text())
    (folder / "commits" / "00002.json").write_text(json.dumps(record | {"fingerprint": "0" * 64}))
    first, second = check_files(Ledger.open(folder)).problems
    assert "commits/00001.json: expected the record" in first
    assert "commits/00002.json: damaged: fingerprint: expected" in second
    (folder / "manifest.json").unlink()
    (problem,) = check_files(Ledger.open(folder)).problems
    assert problem == second


def test_of_two_without_a_lock_between_them_the_commit_is_that_of_the_file(tmp_path: Path) -> None:
    """Rows may differ in a score's last bit. The second one's file comes behind the first one's commit."""
    ledger = planted_ledger(tmp_path / "out")
    facts = {"rows": 2, "bad": 0, "reasons": {}, "seconds": {}, "first_image_sha256": None, "peak_memory_bytes": 0}

    def finished(data: bytes, attempt: int) -> int:
        publish_bytes(ledger.shard_path(0), data, ledger.root)
        return ledger.record(0, **facts, attempt=attempt).attempt

    assert finished(b"rows", 1) == 1
    assert finished(b"rows", 2) == 1, "the first one's stands"
    assert finished(b"Rows", 3) == 3
    assert check_files(ledger).problems == []


def test_a_folder_that_is_none_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no dataset\.json"):
        open_labels(tmp_path)
    with pytest.raises(ValueError, match="found no such folder"):
        open_labels(tmp_path / "nowhere")
    (tmp_path / "run.json").touch()
    with pytest.raises(ValueError, match="found a file"):
        open_labels(tmp_path / "run.json")
    with pytest.raises(ValueError, match="found a training run, which sea-pipeline report shows"):
        open_labels(tmp_path)

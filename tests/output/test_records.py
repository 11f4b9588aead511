"""Damage to a folder of labels or of a run is found and named: one line, the same from every command that reads it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.output import status
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import Commit, DatasetFile, Manifest, Record, load_record
from sea_pipeline.output.run_files import RunFile, SummaryFile, read_log, read_run_file
from sea_pipeline.output.verify import check_files, refuse_damage
from sea_pipeline.report.run import find_inputs
from sea_pipeline.storage.publish import publish_bytes
from tests.support.damage import DAMAGE, EVERYWHERE, RECORDS, Harm, changed, flip, made_a_folder
from tests.support.refused import refuses
from tests.support.report_world import run_folder
from tests.support.worker_world import planted_ledger
from tests.support.world import Shelved, draw

AGAIN = "run the command that made the folder again, which makes it anew"


@pytest.fixture
def folder(shelved: Shelved, tmp_path: Path) -> Path:
    """Labels of nine photos, one of them bad, in three shards."""
    return shutil.copytree(shelved(9) / "labels", tmp_path / "labels")


def said_by_commands(command: Any, folder: Path) -> dict[str, str]:
    """What each command that reads a folder of labels says on stderr; empty if all is well."""
    out = folder.parent / "report.html"
    asked = {"verify": (), "status": (), "inspect": (), "inspect one": ("a/001.png",), "report": ("--out", out)}
    said = {}
    for name, more in asked.items():
        code, stdout, stderr = command(name.partition(" ")[0], folder, *more)
        assert (code == 0) == (stderr == ""), (name, code, stderr)
        assert code in (0, 1)
        assert "Traceback" not in stdout + stderr
        said[name] = stderr
    try:
        open_labels(folder)
        said["open_labels"] = ""
    except UserError as error:
        said["open_labels"] = f"error: {error}\n"
    return said


@pytest.mark.slow
@pytest.mark.parametrize(("name", "what", "harm"), DAMAGE, ids=[f"{name}: {what}" for name, what, _ in DAMAGE])
def test_every_command_says_the_same_line(
    command: Any, folder: Path, name: str, what: str, harm: Callable[[Path], object]
) -> None:
    harm(folder / name)
    said = set(said_by_commands(command, folder).values())
    assert len(said) == 1, "\n".join(sorted(said))
    (line,) = said
    assert line.count("\n") == 1
    assert str(folder) in line
    assert "expected" in line or "damaged" in line
    advice = "restore it, or", "restore it, or delete it and", "remove it, and"
    assert line.endswith((*(f"; {each} {AGAIN}\n" for each in advice), "with the sea-pipeline that wrote it\n"))
    assert len(line) < 700


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_one_flipped_bit_in_any_byte_of_a_record_is_one_line_from_all_or_from_none(
    command: Any, folder: Path, name: str
) -> None:
    """Some 70 of the record's bytes by the functions, four of them by the commands."""
    random = np.random.default_rng(7)
    path = folder / name
    whole = path.read_bytes()
    found = 0
    offsets = range(int(random.integers(2)), len(whole), 1 + len(whole) // 70)
    by_commands = set(random.choice(offsets, 4, replace=False).tolist())
    for offset in offsets:
        flip(path, offset, int(random.integers(8)))
        said = {_line(lambda: _verified(folder)), _line(lambda: _status(folder)), _line(lambda: open_labels(folder))}
        said.add(_line(lambda: find_inputs([folder])))
        assert len(said) == 1, (offset, said)
        assert "\n" not in "".join(said)
        if offset in by_commands:
            assert set(said_by_commands(command, folder).values()) == {
                f"error: {line}\n" if line else "" for line in said
            }
        found += said != {""}
        path.write_bytes(whole)
    assert found > len(offsets) // 2
    assert set(said_by_commands(command, folder).values()) == {""}


def _line(act: Callable[[], object]) -> str:
    try:
        act()
    except UserError as problem:
        return str(problem)
    return ""


def _verified(folder: Path) -> None:
    if problems := check_files(Ledger.open(folder)).problems:
        raise UserError("\n".join(problems))


def _status(folder: Path) -> None:
    ledger = Ledger.open(folder)
    refuse_damage(ledger)
    json.dumps(status.status_to_json(ledger), allow_nan=False)


def test_unfinished_folders_are_looked_at_alike(command: Any, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "commits" / "00002.json").unlink()
    assert command("verify", folder)[0] == command("status", folder)[0] == 0
    changed(folder / "commits" / "00001.json", "finished", value="yesterday")
    lines = {command(name, folder)[2] for name in ("verify", "status", "inspect")}
    assert len(lines) == 1
    assert (
        "00001.json: damaged: finished: expected an ISO 8601 date with a time and its zone; found 'yesterday'"
        in str(lines)
    )


def test_what_a_date_may_be(folder: Path) -> None:
    path = folder / "commits" / "00001.json"
    for good in ("2026-11-28T10:00:00Z", "2026-11-28T10:00:00.123+01:00"):
        changed(path, "finished", value=good)
        assert load_record(path, Commit).finished == good
    for bad in ("2026-11-28T10:00:00", "2026-11-28", "٢026-11-28T10:00:00Z", "2026-13-28T10:00:00Z", ""):
        changed(path, "finished", value=bad)
        with pytest.raises(UserError, match="finished: expected an ISO 8601 date"):
            load_record(path, Commit)


@pytest.mark.parametrize(("name", "record"), [*zip(RECORDS, (Commit, Manifest, DatasetFile), strict=True)])
def test_an_unknown_key_may_be_of_another_version(folder: Path, name: str, record: type[Record]) -> None:
    EVERYWHERE["an unknown key"](folder / name)
    with pytest.raises(UserError, match=": damaged, or written by another version: more: expected no such key"):
        load_record(folder / name, record)


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


@pytest.mark.slow
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


RUN_DAMAGE: dict[str, tuple[str, Harm]] = {
    f"{name}: {what}": (name, EVERYWHERE[what])
    for names, kinds in (
        (("run.json", "views.json"), ("empty", "not UTF-8", "NaN", "a number beyond floats")),
        (("summary.json", "views.json"), ("cut", "a list", "deep")),
    )
    for name in names
    for what in kinds
}
RUN_DAMAGE |= {
    "a recipe that is a list": ("run.json", lambda path: changed(path, "recipe", value=[])),
    "another digit in the recipe": (
        "run.json",
        lambda path: changed(path, "recipe", "loss", "sea", "weight", value=1.0),
    ),
    "another digit in the fields": ("run.json", lambda path: changed(path, "fields", "model", "weights", value="v")),
    "another fingerprint": ("run.json", lambda path: changed(path, "fingerprint", value="e" * 64)),
    "fields that are text": ("run.json", lambda path: changed(path, "fields", value="x")),
    "a version that is a number": ("run.json", lambda path: changed(path, "versions", value={"torch": 2})),
    "a negative count": ("summary.json", lambda path: changed(path, "steps", value=-1)),
    "steps that are text": ("summary.json", lambda path: changed(path, "steps", value="8")),
    "a metric that is text": ("summary.json", lambda path: changed(path, "end", value={"loss": "low"})),
    "no images of views": ("views.json", lambda path: changed(path, "images", value=None)),
    "a box of three edges": ("views.json", lambda path: changed(path, "images", 0, "box", value=[0, 0, 1])),
    "a box of text": ("views.json", lambda path: changed(path, "images", 0, "box", value=list("abcd"))),
    "a word that is text": ("views.json", lambda path: changed(path, "images", 0, "after", "nearest", value=["x"])),
    "views that are not as they were written": ("views.json", lambda path: changed(path, "sha256", value="e" * 64)),
    "a folder for views": ("views.json", made_a_folder),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", RUN_DAMAGE)
def test_a_damaged_run_is_one_line_and_its_advice_ends_in_a_report(command: Any, tmp_path: Path, what: str) -> None:
    draw(tmp_path / "one.png", [["red"]])
    run = run_folder(tmp_path / "run", views={})
    name, harm = RUN_DAMAGE[what]
    kept = (run / name).read_bytes()
    asked = ("report", run, "--images", 0, "--out", tmp_path / "report.html")
    harm(run / name)
    code, stdout, said = command(*asked)
    assert (code, stdout, said.count("\n")) == (1, "", 1)
    assert said.startswith(f"error: {run / name}: ")
    if name == "views.json":
        assert said.endswith("; remove it, and run the same command again, which makes it anew or goes without\n")
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    else:
        assert said.endswith("; restore it\n")
        (run / name).write_bytes(kept)
    assert command(*asked)[0] == 0


def test_a_damaged_line_of_the_log_is_named_and_its_advice_ends_in_a_report(command: Any, tmp_path: Path) -> None:
    lines = [b'{"step": 0, "seconds": 0.5, "loss": NaN}', b'{"step": 1, "seconds": 1, "loss": 2.0}']
    log = run_folder(tmp_path / "run") / "metrics.jsonl"
    asked = ("report", log.parent, "--images", 0, "--out", tmp_path / "report.html")
    for half in (b"\xff\xfe", b"[]", b'{"step": "2", "seconds": 1}', b'{"loss": 1}', b"{", b'{"a":' * 99_999):
        log.write_bytes(b"\n".join([*lines, half, lines[1]]))
        with pytest.raises(UserError, match=r"metrics\.jsonl: line 3: damaged: .*, or remove that line, and run the"):
            read_log(log)
        log.write_bytes(b"\n".join([*lines, half]))
        assert [line["step"] for line in read_log(log)] == [0, 1], "a kill may end the last line"
    log.write_bytes(b"\n".join([half, *lines]))
    refuses(command, "", *asked, start=f"error: {log}: line 1: damaged: ")
    log.write_bytes(b"\n".join([*lines, b""]))
    assert command(*asked)[0] == 0
    assert read_log(tmp_path / "absent") == []


@pytest.mark.parametrize("record", [RunFile, SummaryFile])
def test_what_is_read_is_what_is_there(tmp_path: Path, record: Callable[..., Any]) -> None:
    path = tmp_path / "file.json"
    counted = {"loss": {"basic": {"lens": {"kind": "ridge"}}}, "training_arguments": {"gradient_accumulation_steps": 8}}
    run = {"recipe": {"loss": {"basic": {"lens": "ridge"}}, "training_arguments": {}}, "fields": {"recipe": counted}}
    summary = {"fields": {}, "start": {"loss": 1}, "seconds": 2}
    for good in ({}, {"steps": 3}, {"later": [1, None]}, summary, run):
        path.write_text(json.dumps(good))
        assert read_run_file(path, record) == good  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"absent: cannot be read: .*; restore it"):
        read_run_file(tmp_path / "absent", record)  # type: ignore[arg-type]

"""What is damaged in a folder's records is one line, the same from every command that reads the folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sea_pipeline import analysis, open_labels
from sea_pipeline.errors import UserError
from sea_pipeline.ledger import Ledger
from sea_pipeline.record_values import json_object
from sea_pipeline.records import Commit, load_record
from sea_pipeline.report import find_inputs
from sea_pipeline.stage_run import StageRun
from sea_pipeline.verify import check_files, refuse_damage
from tests.world import draw_folder

RECORDS = ["commits/00001.json", "manifest.json", "dataset.json"]
AGAIN = "run the command that made the folder again, which makes it anew"


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def folder(label: Callable[..., StageRun], tmp_path: Path, _made: Path) -> Path:
    """Labels of nine photos, one of them bad, in three shards."""
    whole = _made / "labels"
    if not whole.exists():
        photos = draw_folder(_made / "photos", 9)
        (photos / "003.png").write_bytes(b"")
        label(images=str(photos), out=whole)
    return shutil.copytree(whole, tmp_path / "labels")


def _changed(path: Path, *keys: Any, value: Any) -> None:
    record = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(record))


def _without(path: Path, key: str) -> None:
    record = json.loads(path.read_text())
    del record[key]
    path.write_text(json.dumps(record))


def _made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "notes").write_text("of mine")


def _replaced(path: Path, old: bytes, new: bytes) -> None:
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))


EVERYWHERE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "blank": lambda path: path.write_bytes(b"\n"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "not UTF-8": lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
    "UTF-8 in a value": lambda path: _replaced(path, b'"fingerprint": "', b'"fingerprint": "\xff'),
    "UTF-16": lambda path: path.write_bytes(path.read_text().encode("utf-16")),
    "a list": lambda path: path.write_bytes(b"[]"),
    "NaN": lambda path: _replaced(path, b"{", b'{"more": NaN,'),
    "a number beyond floats": lambda path: _replaced(path, b"{", b'{"more": 1e999,'),
    "a number of 9,000 digits": lambda path: _replaced(path, b"{", b'{"more": ' + b"9" * 9000 + b","),
    "deep": lambda path: path.write_bytes(b'{"a":' * 99_999),
    "an unknown key": lambda path: _changed(path, "more", value=1),
    "a key gone": lambda path: _without(path, "fingerprint"),
    "a wrong type": lambda path: _changed(path, "plan", value=7),
    "text for a number": lambda path: _replaced(path, b'": 1,', b'": "1",'),
    "half a pair of UTF-16": lambda path: _replaced(path, b'"fingerprint": "', b'"fingerprint": "\\ud800'),
    "no hash": lambda path: _replaced(path, b'"sha256": "', b'"sha256": "g'),
    "a file's size": lambda path: _replaced(path, b'"bytes": ', b'"bytes": 1'),
    "a file's negative size": lambda path: _replaced(path, b'"bytes": ', b'"bytes": -'),
    "a way up": lambda path: _replaced(path, b'"path": "', b'"path": "../'),
    "an absolute path": lambda path: _replaced(path, b'"path": "', b'"path": "/'),
    "NUL in a path": lambda path: _replaced(path, b'"path": "', b'"path": "\\u0000'),
    "a line's end in a path": lambda path: _replaced(path, b'"path": "', b'"path": "\\n'),
    "a folder": _made_a_folder,
}
COMMIT: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "a bit of a date": lambda path: _replaced(path, b'"finished": "2', b'"finished": "r'),
    "a date without a zone": lambda path: _replaced(path, b'+00:00"', b'"'),
    "a day that is none": lambda path: _changed(path, "finished", value="2026-02-30T00:00:00+00:00"),
    "a count": lambda path: _changed(path, "rows", value=3),
    "a negative count": lambda path: _changed(path, "rows", value=-4),
    "a count with a fraction": lambda path: _changed(path, "rows", value=4.0),
    "true for a count": lambda path: _changed(path, "attempt", value=True),
    "a huge count": lambda path: _changed(path, "rows", value=10**30),
    "negative seconds": lambda path: _changed(path, "seconds", "decode", value=-1.0),
    "reasons": lambda path: _changed(path, "reasons", value={"read: EmptyFile": 1}),
    "another shard": lambda path: _changed(path, "shard", value=2),
    "no files": lambda path: _changed(path, "files", value=[]),
    "another file": lambda path: _changed(path, "files", 0, "path", value="labels/part-00000-of-00003.parquet"),
    "another hash": lambda path: _changed(path, "files", 0, "sha256", value="0" * 64),
    "another run": lambda path: _changed(path, "fingerprint", value="0" * 64),
    "another plan": lambda path: _changed(path, "plan", value="0" * 64),
}
MANIFEST: dict[str, Callable[[Path], object]] = {
    "a count": lambda path: _changed(path, "rows", value=9),
    "a shard's count": lambda path: _changed(path, "shard_rows", 1, value=3),
    "a shard's hash": lambda path: _changed(path, "shards", 1, "sha256", value="0" * 64),
    "a shard less": lambda path: _changed(path, "shards", value=[]),
    "the hash of words.parquet": lambda path: _changed(path, "other_files", 2, "sha256", value="0" * 64),
    "the path of words.parquet": lambda path: _changed(path, "other_files", 2, "path", value="wordz.parquet"),
    "a field": lambda path: _changed(path, "fields", "top_n", value=5),
    "another run": lambda path: _changed(path, "fingerprint", value="0" * 64),
    "another kind": lambda path: _changed(path, "kind", value="targets"),
}
DATASET: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "a field": lambda path: _changed(path, "fields", "top_n", value=5),
    "a field that is no number": lambda path: _replaced(path, b'"top_n": 3', b'"top_n": Infinity'),
    "another kind": lambda path: _changed(path, "kind", value="labelz"),
    "a kind that is a path": lambda path: _changed(path, "kind", value="../labels"),
    "another plan": lambda path: _changed(path, "plan", value="0" * 64),
    "a count of images": lambda path: _changed(path, "images", value=10),
    "a count of shards": lambda path: _changed(path, "shards", value=4),
    "a size of shards": lambda path: _changed(path, "shard_size", value=3),
    "shards of none": lambda path: _changed(path, "shard_size", value=0),
    "NUL in a root": lambda path: _changed(path, "image_root", value="/a\0b"),
    "the hash of the plan": lambda path: _changed(path, "files", 0, "sha256", value="0" * 64),
    "another version": lambda path: _changed(path, "schema_version", value=7),
}
OTHERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "commits a file": ("commits", lambda path: (shutil.rmtree(path), path.write_text(""))),
    "labels a file": ("labels", lambda path: (shutil.rmtree(path), path.write_text(""))),
    "a shard a folder": ("labels/part-00001-of-00003.parquet", _made_a_folder),
    "a shard gone": ("labels/part-00001-of-00003.parquet", Path.unlink),
    "a shard cut": ("labels/part-00001-of-00003.parquet", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "quarantine gone": ("quarantine/00000.parquet", Path.unlink),
    "quarantine empty": ("quarantine/00000.parquet", lambda path: path.write_bytes(b"")),
    "a bit of quarantine": ("quarantine/00000.parquet", lambda path: _flip(path, 200)),
    "words.parquet gone": ("words.parquet", Path.unlink),
    "words.parquet empty": ("words.parquet", lambda path: path.write_bytes(b"")),
    "a bit of words.parquet": ("words.parquet", lambda path: _flip(path, 20)),
    "words.parquet a folder": ("words.parquet", _made_a_folder),
    "words.txt gone": ("words.txt", Path.unlink),
    "a bit of words.txt": ("words.txt", lambda path: _flip(path, 3)),
    "the plan gone": ("plan.parquet", Path.unlink),
    "a bit of the plan": ("plan.parquet", lambda path: _flip(path, 60)),
}
DAMAGE = [(name, what, harm) for name in RECORDS for what, harm in EVERYWHERE.items()]
DAMAGE += [(RECORDS[0], what, harm) for what, harm in COMMIT.items()]
DAMAGE += [(RECORDS[1], what, harm) for what, harm in MANIFEST.items()]
DAMAGE += [(RECORDS[2], what, harm) for what, harm in DATASET.items()]
DAMAGE += [(name, what, harm) for what, (name, harm) in OTHERS.items()]


def _flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


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


@pytest.mark.parametrize("name", RECORDS)
def test_one_flipped_bit_in_any_byte_of_a_record_is_one_line_from_all_or_from_none(
    command: Any, folder: Path, name: str
) -> None:
    """Every byte by the functions, some of them by the commands."""
    random = np.random.default_rng(7)
    path = folder / name
    whole = path.read_bytes()
    found = 0
    by_commands = set(random.choice(len(whole), 12, replace=False).tolist())
    for offset in range(len(whole)):
        _flip(path, offset, int(random.integers(8)))
        said = {_line(lambda: _verified(folder)), _line(lambda: _status(folder)), _line(lambda: open_labels(folder))}
        said |= {_line(lambda: find_inputs([folder])), _line(lambda: open_labels(folder, verify=False)["a/001.png"])}
        assert len(said) == 1, (offset, said)
        assert "\n" not in "".join(said)
        if offset in by_commands:
            assert set(said_by_commands(command, folder).values()) == {
                f"error: {line}\n" if line else "" for line in said
            }
        found += said != {""}
        path.write_bytes(whole)
    assert found > len(whole) // 2
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
    json.dumps(analysis.status_to_json(ledger), allow_nan=False)


def test_unfinished_folders_are_looked_at_alike(command: Any, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "commits" / "00002.json").unlink()
    assert command("verify", folder)[0] == command("status", folder)[0] == 0
    _changed(folder / "commits" / "00001.json", "finished", value="yesterday")
    lines = {command(name, folder)[2] for name in ("verify", "status", "inspect")}
    assert len(lines) == 1
    assert (
        "00001.json: damaged: finished: expected an ISO 8601 date with a time and its zone; found 'yesterday'"
        in str(lines)
    )


def test_what_a_date_may_be(folder: Path) -> None:
    path = folder / "commits" / "00001.json"
    for good in ("2026-11-28T10:00:00Z", "2026-11-28T10:00:00.123+01:00"):
        _changed(path, "finished", value=good)
        assert load_record(path, Commit).finished == good
    for bad in ("2026-11-28T10:00:00", "2026-11-28", "٢026-11-28T10:00:00Z", "2026-13-28T10:00:00Z", ""):
        _changed(path, "finished", value=bad)
        with pytest.raises(UserError, match="finished: expected an ISO 8601 date"):
            load_record(path, Commit)


def test_only_finite_numbers_are_json() -> None:
    assert json_object(b'{"a": 1.5, "b": -1e300}') == {"a": 1.5, "b": -1e300}
    for text in (b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e400}'):
        with pytest.raises(ValueError, match="expected finite numbers; found"):
            json_object(text)

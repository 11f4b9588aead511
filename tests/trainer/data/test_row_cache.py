"""Rows that are kept on disk are as they were written, or are made again."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from sea_pipeline.core import progress
from sea_pipeline.core.errors import UserError
from tests.support.damage import Harm, changed, flip, made_a_folder
from tests.support.heard import Heard
from tests.support.kills import killed_around
from trainer.data import row_cache
from trainer.data.row_cache import kept_rows, reported

FEATURES = datasets.Features({"id": datasets.Value("string"), "ids": datasets.List(datasets.Value("int32"))})
ROWS = [{"id": f"row {number}", "ids": [number, 7, number]} for number in range(20)]
KEY = "0123456789abcdef"


@pytest.fixture
def keep(tmp_path: Path) -> Callable[[], tuple[list[dict[str, Any]], int]]:
    """The rows, and how often they have been made."""
    made = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal made
        made += 1
        yield from ROWS

    return lambda: (kept_rows(rows, FEATURES, tmp_path / "cache", KEY).to_list(), made)


def arrow(folder: Path) -> Path:
    (path,) = folder.rglob("*.arrow")
    return path


HARMS: dict[str, tuple[Callable[[Path], Path], Harm]] = {
    "a bit of a value": (arrow, lambda path: flip(path, path.read_bytes().index(b"row 3") + 4)),
    "a bit of an offset": (arrow, lambda path: flip(path, path.read_bytes().index(b"row 0row") - 8, 6)),
    "cut": (arrow, lambda path: path.write_bytes(path.read_bytes()[:300])),
    "empty": (arrow, lambda path: path.write_bytes(b"")),
    "gone": (arrow, Path.unlink),
    "a folder": (arrow, made_a_folder),
    "what datasets says of it": (lambda folder: arrow(folder).parent / "dataset_info.json", lambda path: flip(path, 1)),
    "the record": (lambda folder: folder / f"{KEY}.json", lambda path: flip(path, 20)),
    "a record of nothing": (lambda folder: folder / f"{KEY}.json", lambda path: changed(path, "files", value=[])),
    "a folder for a record": (lambda folder: folder / f"{KEY}.json", made_a_folder),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", HARMS)
def test_what_is_not_as_it_was_written_is_made_again(keep: Callable[[], Any], tmp_path: Path, what: str) -> None:
    assert keep() == (ROWS, 1)
    assert keep() == (ROWS, 1)
    find, harm = HARMS[what]
    harm(find(tmp_path / "cache"))
    assert keep() == (ROWS, 2)
    assert keep() == (ROWS, 2)


@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_while_damaged_rows_are_removed_does_not_make_them_good(
    keep: Callable[[], Any], tmp_path: Path, call: int
) -> None:
    """Rows without a record are taken as they are."""
    keep()
    find, harm = HARMS["a bit of a value"]
    harm(find(tmp_path / "cache"))
    with killed_around(Path, "unlink", call, before=False):
        keep()
    assert keep() == (ROWS, 2)


def test_rows_of_before_there_was_a_record_are_taken_as_they_are(keep: Callable[[], Any], tmp_path: Path) -> None:
    """It may also be a kill that came before it was written."""
    keep()
    (tmp_path / "cache" / f"{KEY}.json").unlink()
    assert keep() == (ROWS, 1)
    assert (tmp_path / "cache" / f"{KEY}.json").exists()


def test_what_stops_the_rows_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield ROWS[0]
        raise UserError("x.json: entry 2: expected a record; found none")

    for _ in range(2):
        with pytest.raises(UserError, match=r"^x\.json: entry 2"):
            kept_rows(rows, FEATURES, tmp_path / "cache", KEY)
    assert not (tmp_path / "cache" / f"{KEY}.json").exists()


def test_it_is_said_if_making_them_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The total is of records, also if a text has the word or a key lies across two reads."""
    records = [{"id": "1", "conversations": [{"value": 'a "conversations" b'}]} for _ in range(60_000)]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(records))
    heard = Heard()
    monkeypatch.setattr(progress, "SLOW", -1.0)
    rows = reported(lambda: iter(ROWS * 7), file, heard)
    assert kept_rows(rows, FEATURES, tmp_path / "cache", KEY).to_list() == ROWS * 7
    assert [line.split(" done")[0] for line in heard.lines] == [f"reading {file}: {row_cache._CHUNK} of 60,000"]
    kept_rows(rows, FEATURES, tmp_path / "cache", KEY)
    assert len(heard.lines) == 1, "they are only loaded"

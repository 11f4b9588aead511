"""Tokenised conversations as rows: made once, kept whole or made again, read when needed, split by id."""

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest

from sea_pipeline.core import progress
from sea_pipeline.core.errors import UserError
from tests.support.conversations_json import Row, load, record, rows_of, written
from tests.support.damage import Harm, changed, flip, made_a_folder
from tests.support.heard import Heard
from tests.support.kills import killed_around
from tests.support.programs import Begin
from tests.support.tiny_tokenizers import CHATML, CHATML_MARKED, byte_level, llama_like
from trainer.data import conversations, row_cache
from trainer.data.conversations import split_rows, summary
from trainer.data.row_cache import kept_rows, reported
from trainer.model.tokenise import ConversationTokenizer


def test_the_same_input_is_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encode = ConversationTokenizer.__call__

    def counted(self: ConversationTokenizer, rows: Any) -> Iterator[Row]:
        calls.append(len(rows))
        return encode(self, rows)

    monkeypatch.setattr(ConversationTokenizer, "__call__", counted)
    data = written(tmp_path, record([("a", "b")]))
    first = load(data, byte_level(), "own")
    used = byte_level()
    used.backend_tokenizer.enable_padding()
    used.backend_tokenizer.enable_truncation(2)
    assert rows_of(load(data, used, "own")) == rows_of(first)
    assert calls == [1]
    assert first.cache_files
    others: list[tuple[Any, Any, Row]] = [
        (byte_level(), "plain", {}),
        (byte_level(), "own", {"image_tokens": 6}),
        (byte_level(), "own", {"max_length": 9_999}),
        (byte_level(CHATML_MARKED), "own", {}),
        (llama_like(chat_template=CHATML), "own", {}),
    ]
    for number, (tokenizer, template, more) in enumerate(others, start=2):
        load(data, tokenizer, template, **more)
        assert len(calls) == number
    assert load(written(tmp_path, record([("a", "c")])), byte_level(), "own")["input_ids"] != first["input_ids"]
    assert len(calls) == len(others) + 2


def test_rows_are_read_as_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def watched(path: Path, *, strict: bool) -> Iterator[tuple[int, Row]]:
        for number in range(1, 10_001):
            read.append(number)
            yield number, record([("a", "b")])

    monkeypatch.setattr(conversations, "records", watched)
    rows = partial(conversations.conversation_rows, tmp_path / "x.json", byte_level(), template="own", image_tokens=5)
    next(rows())
    assert len(read) <= 64
    assert len(list(rows(limit=70))) == 70
    assert len(read) <= 64 + 70


def test_a_failure_leaves_nothing_that_is_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(tmp_path, *(record([("a", str(number))]) for number in range(200)))
    records = conversations.records

    def stops(path: Path, *, strict: bool) -> Iterator[tuple[int, Row]]:
        for number, row in records(path):
            if number == 150:
                raise failure
            yield number, row

    monkeypatch.setattr(conversations, "records", stops)
    expectations: list[tuple[BaseException, type[BaseException], str]] = [
        (UserError("mend me"), UserError, "^mend me$"),
        (OSError(28, "No space left on device"), UserError, "No space left on device; free some space"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ]
    for failure, kind, expected in expectations:  # noqa: B007 - `stops` reads it
        with pytest.raises(kind, match=expected):
            load(data, byte_level(), "own")
    monkeypatch.undo()
    monkeypatch.setenv("SEA_PIPELINE_CACHE", str(tmp_path / "cache"))
    assert len(load(data, byte_level(), "own")) == 200


def load_and_die() -> None:
    """Reads conversations, and kills its process at row 2,000."""
    records = conversations.records

    def dies(path: Path, *, strict: bool) -> Iterator[tuple[int, Any]]:
        for number, row in records(path):
            if number == 2000:
                os.kill(os.getpid(), signal.SIGKILL)
            yield number, row

    conversations.records = dies
    load(Path(sys.argv[1]), byte_level(), "own")


def test_a_kill_leaves_nothing_that_is_taken_for_whole(tmp_path: Path, program: Begin) -> None:
    data = written(tmp_path, *(record([("a", str(number))]) for number in range(2500)))
    done = program(data, main=load_and_die)
    assert done.wait() == -signal.SIGKILL, done.stderr
    assert list((tmp_path / "cache").rglob("*.arrow")), "it was to be killed after some rows were written"
    again = load(data, byte_level(), "own")
    assert again["id"][:] == [str(number) for number in range(1, 2501)]
    assert byte_level().decode(again[2499]["input_ids"]).endswith("2499<|im_end|>\n")
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_nothing_is_printed_and_progress_bars_stay_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load(written(tmp_path, record([("a", "b")])), byte_level(), "own")
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def split_ids(dataset: datasets.Dataset, held_out: int | float, seed: int = 0) -> tuple[list[str], list[str]]:
    train, held = split_rows(dataset, held_out, seed)
    return train["id"][:], held["id"][:]


def test_a_split_depends_on_ids_alone() -> None:
    names = [f"row {number}" for number in range(100)]
    shuffled = random.Random(1).sample(names, 100)
    train, held = split_ids(datasets.Dataset.from_dict({"id": names}), 10)
    assert len(held) == 10
    assert sorted(train + held) == sorted(names)
    assert [train, held] == [sorted(part, key=names.index) for part in (train, held)]
    for rows in (shuffled, shuffled[::-1]):
        other_train, other_held = split_ids(datasets.Dataset.from_dict({"id": rows}), 0.1)
        assert set(other_held) == set(held)
        assert [other_train, other_held] == [sorted(part, key=rows.index) for part in (other_train, other_held)]
    assert set(split_ids(datasets.Dataset.from_dict({"id": names}), 10, seed=1)[1]) != set(held)
    assert set(held) < set(split_ids(datasets.Dataset.from_dict({"id": names}), 20)[1])


def test_rows_of_one_id_stay_together() -> None:
    dataset = datasets.Dataset.from_dict({"id": [str(number // 4) for number in range(40)]})
    train, held = split_ids(dataset, 5)
    assert len(held) == 8
    assert not set(train) & set(held)
    assert split_ids(dataset, 0) == (dataset["id"][:], [])
    same = datasets.Dataset.from_dict({"id": ["same"] * 5})
    for rows, held_out in [(dataset, 40), (dataset, 41), (dataset, -1), (dataset, 1.0), (same, 1)]:
        with pytest.raises(UserError, match="held_out: expected"):
            split_rows(rows, held_out, 0)
    assert summary(datasets.Dataset.from_dict({"images": [], "truncated": []})).rows == 0


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

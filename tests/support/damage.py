"""Ways to damage the files of a finished folder of labels: what each does, by the name of the file.

Labels of nine photos in three shards, the first of which has a bad image.
"""

import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Harm = Callable[[Path], object]

RECORDS = ["commits/00001.json", "manifest.json", "dataset.json"]


def changed(path: Path, *keys: Any, value: Any) -> None:
    record = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(record))


def without(path: Path, key: str) -> None:
    record = json.loads(path.read_text())
    del record[key]
    path.write_text(json.dumps(record))


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "notes").write_text("of mine")


def replaced(path: Path, old: bytes, new: bytes) -> None:
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))


EVERYWHERE: dict[str, Harm] = {
    "empty": lambda path: path.write_bytes(b""),
    "blank": lambda path: path.write_bytes(b"\n"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "not UTF-8": lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
    "UTF-8 in a value": lambda path: replaced(path, b'"fingerprint": "', b'"fingerprint": "\xff'),
    "UTF-16": lambda path: path.write_bytes(path.read_text().encode("utf-16")),
    "a list": lambda path: path.write_bytes(b"[]"),
    "NaN": lambda path: replaced(path, b"{", b'{"more": NaN,'),
    "a number beyond floats": lambda path: replaced(path, b"{", b'{"more": 1e999,'),
    "a number of 9,000 digits": lambda path: replaced(path, b"{", b'{"more": ' + b"9" * 9000 + b","),
    "deep": lambda path: path.write_bytes(b'{"a":' * 99_999),
    "an unknown key": lambda path: changed(path, "more", value=1),
    "a key gone": lambda path: without(path, "fingerprint"),
    "a wrong type": lambda path: changed(path, "plan", value=7),
    "text for a number": lambda path: replaced(path, b'": 1,', b'": "1",'),
    "half a pair of UTF-16": lambda path: replaced(path, b'"fingerprint": "', b'"fingerprint": "\\ud800'),
    "no hash": lambda path: replaced(path, b'"sha256": "', b'"sha256": "g'),
    "a file's size": lambda path: replaced(path, b'"bytes": ', b'"bytes": 1'),
    "a file's negative size": lambda path: replaced(path, b'"bytes": ', b'"bytes": -'),
    "a way up": lambda path: replaced(path, b'"path": "', b'"path": "../'),
    "an absolute path": lambda path: replaced(path, b'"path": "', b'"path": "/'),
    "NUL in a path": lambda path: replaced(path, b'"path": "', b'"path": "\\u0000'),
    "a line's end in a path": lambda path: replaced(path, b'"path": "', b'"path": "\\n'),
    "a folder": made_a_folder,
}
COMMIT: dict[str, Harm] = {
    "gone": Path.unlink,
    "a bit of a date": lambda path: replaced(path, b'"finished": "2', b'"finished": "r'),
    "a date without a zone": lambda path: replaced(path, b'+00:00"', b'"'),
    "a day that is none": lambda path: changed(path, "finished", value="2026-02-30T00:00:00+00:00"),
    "a count": lambda path: changed(path, "rows", value=3),
    "a negative count": lambda path: changed(path, "rows", value=-4),
    "a count with a fraction": lambda path: changed(path, "rows", value=4.0),
    "true for a count": lambda path: changed(path, "attempt", value=True),
    "a huge count": lambda path: changed(path, "rows", value=10**30),
    "negative seconds": lambda path: changed(path, "seconds", "decode", value=-1.0),
    "reasons": lambda path: changed(path, "reasons", value={"read: EmptyFile": 1}),
    "another shard": lambda path: changed(path, "shard", value=2),
    "no files": lambda path: changed(path, "files", value=[]),
    "another file": lambda path: changed(path, "files", 0, "path", value="labels/part-00000-of-00003.parquet"),
    "another hash": lambda path: changed(path, "files", 0, "sha256", value="0" * 64),
    "another run": lambda path: changed(path, "fingerprint", value="0" * 64),
    "another plan": lambda path: changed(path, "plan", value="0" * 64),
}
MANIFEST: dict[str, Harm] = {
    "a count": lambda path: changed(path, "rows", value=9),
    "a shard's count": lambda path: changed(path, "shard_rows", 1, value=3),
    "a shard's hash": lambda path: changed(path, "shards", 1, "sha256", value="0" * 64),
    "a shard less": lambda path: changed(path, "shards", value=[]),
    "the hash of words.parquet": lambda path: changed(path, "other_files", 2, "sha256", value="0" * 64),
    "the path of words.parquet": lambda path: changed(path, "other_files", 2, "path", value="wordz.parquet"),
    "a field": lambda path: changed(path, "fields", "top_n", value=5),
    "another run": lambda path: changed(path, "fingerprint", value="0" * 64),
    "another kind": lambda path: changed(path, "kind", value="targets"),
    "an earlier version": lambda path: changed(path, "schema_version", value=1),
}
DATASET: dict[str, Harm] = {
    "gone": Path.unlink,
    "a field": lambda path: changed(path, "fields", "top_n", value=5),
    "a field that is no number": lambda path: replaced(path, b'"top_n": 3', b'"top_n": Infinity'),
    "another kind": lambda path: changed(path, "kind", value="labelz"),
    "a kind that is a path": lambda path: changed(path, "kind", value="../labels"),
    "another plan": lambda path: changed(path, "plan", value="0" * 64),
    "a count of images": lambda path: changed(path, "images", value=10),
    "a count of shards": lambda path: changed(path, "shards", value=4),
    "a size of shards": lambda path: changed(path, "shard_size", value=3),
    "shards of none": lambda path: changed(path, "shard_size", value=0),
    "NUL in a root": lambda path: changed(path, "image_root", value="/a\0b"),
    "the hash of the plan": lambda path: changed(path, "files", 0, "sha256", value="0" * 64),
    "another version": lambda path: changed(path, "schema_version", value=7),
    "an earlier version": lambda path: changed(path, "schema_version", value=1),
}
OTHERS: dict[str, tuple[str, Harm]] = {
    "commits a file": ("commits", lambda path: (shutil.rmtree(path), path.write_text(""))),
    "labels a file": ("labels", lambda path: (shutil.rmtree(path), path.write_text(""))),
    "a shard a folder": ("labels/part-00001-of-00003.parquet", made_a_folder),
    "a shard gone": ("labels/part-00001-of-00003.parquet", Path.unlink),
    "a shard cut": ("labels/part-00001-of-00003.parquet", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "quarantine gone": ("quarantine/00000.parquet", Path.unlink),
    "quarantine empty": ("quarantine/00000.parquet", lambda path: path.write_bytes(b"")),
    "a bit of quarantine": ("quarantine/00000.parquet", lambda path: flip(path, 200)),
    "words.parquet gone": ("words.parquet", Path.unlink),
    "words.parquet empty": ("words.parquet", lambda path: path.write_bytes(b"")),
    "a bit of words.parquet": ("words.parquet", lambda path: flip(path, 20)),
    "words.parquet a folder": ("words.parquet", made_a_folder),
    "words.txt gone": ("words.txt", Path.unlink),
    "a bit of words.txt": ("words.txt", lambda path: flip(path, 3)),
    "the plan gone": ("plan.parquet", Path.unlink),
    "a bit of the plan": ("plan.parquet", lambda path: flip(path, 60)),
}
ON_EACH = ("empty", "a folder")
"""Kinds that are done to every record. The others are done to the records in turn, which are read by one function."""
DAMAGE = [
    (name, what, harm)
    for number, (what, harm) in enumerate(EVERYWHERE.items())
    for name in (RECORDS if what in ON_EACH else [RECORDS[number % len(RECORDS)]])
]
DAMAGE += [(RECORDS[0], what, harm) for what, harm in COMMIT.items()]
DAMAGE += [(RECORDS[1], what, harm) for what, harm in MANIFEST.items()]
DAMAGE += [(RECORDS[2], what, harm) for what, harm in DATASET.items()]
DAMAGE += [(name, what, harm) for what, (name, harm) in OTHERS.items()]


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


@contextmanager
def unreadable(path: Path, number: int = errno.EACCES) -> Iterator[None]:
    """A file that exists and that opening refuses, also for root."""
    real = io.open

    def opened(file: Any, *given: Any, **named: Any) -> Any:
        if str(file) == str(path):
            raise OSError(number, os.strerror(number), str(path))
        return real(file, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opened)
        yield


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """A folder into which nobody may look, also not root."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((os, "stat"), (os, "listdir"), (os, "scandir"), (os, "open"), (io, "open")):
            real = getattr(module, name)

            def refusing(path: Any = ".", *given: Any, name: str = name, real: Any = real, **named: Any) -> Any:
                found = Path(path) if isinstance(path, str | Path) else Path()
                if folder in found.parents or (found == folder and name != "stat"):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
                return real(path, *given, **named)

            patch.setattr(module, name, refusing)
        allowed = os.access
        patch.setattr(os, "access", lambda path, mode: Path(path) != folder and allowed(path, mode))
        yield

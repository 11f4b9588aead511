"""LLaVA's JSON and JSONL, one record at a time: the file is never held in memory."""

import codecs
import hashlib
import json
import mmap
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from sea_pipeline.errors import UserError


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads the records of a `.json` (an array) or `.jsonl` (one object a line) file in their order.

    Yields:
        The number of the entry or, in a `.jsonl`, of the line, from 1; and the record. A record has `image` or
        `conversations`; nothing else of it has been checked.

    Raises:
        UserError: the file cannot be read, is not JSON in UTF-8, or holds something else than such records.
    """
    try:
        with path.open("rb") as file:
            yield from records_of(file, str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def records_of(file: BinaryIO, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same of an open file that is called `path`."""
    for number, row in (_json_lines if _has_lines(path) else _json_array)(file, path):
        if not isinstance(row, dict) or not ("image" in row or "conversations" in row):
            raise UserError(
                f"{path}: {place(path, number)}: expected a LLaVA record, an object with 'image' and 'conversations'; "
                "found " + (f"the keys {sorted(row)[:6]}" if isinstance(row, dict) else type(row).__name__)
            )
        yield number, row


def place(path: Path | str, number: int) -> str:
    """What `records` counts in this file, for a message: `entry 3` or `line 3`."""
    return f"{'line' if _has_lines(path) else 'entry'} {number}"


def grew_from(path: Path, sha256: str) -> bool:
    """Whether an earlier file of this sha256 has become this one by records behind those that it had.

    The bytes up to the end of some record, and then what ends the file, are the earlier file. What that said of an
    image is then still the first that is said of it.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = data[data.rfind(b"}") + 1 :]
        digest, start = hashlib.sha256(), 0
        while behind := data.find(b"}", start) + 1:
            digest.update(data[start:behind])
            earlier, start = digest.copy(), behind
            earlier.update(end)
            if earlier.hexdigest() == sha256:
                return True
    return False


def images_of(row: dict[str, Any]) -> list[Any]:
    """The `image` field as a list, as it stands in the file; empty where a record has text only."""
    image = row.get("image")
    return image if isinstance(image, list) else [] if image is None else [image]


def relative_path(image: Any) -> str:  # noqa: ANN401 - whatever a data file holds
    """An entry of `image` as a normalised path below the image root.

    Raises:
        ValueError: it is no path, names no file, or leaves the root; says which.
    """
    if not isinstance(image, str) or not image or "\0" in image:
        raise ValueError(f"expected 'image' to be a path; found {image!r:.80}")
    try:
        image.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the path is not UTF-8, or holds half of a UTF-16 pair; it names no file") from None
    path = posixpath.normpath(image)
    if path.startswith(("/", "../")) or path == "..":
        raise ValueError("the path leaves the image root; paths in data files start there")
    return path


def _has_lines(path: Path | str) -> bool:
    return str(path).lower().endswith(".jsonl")


def _json_array(file: BinaryIO, path: str) -> Iterator[tuple[int, Any]]:
    opening = file.read(4096)
    file.seek(3 if opening.startswith(codecs.BOM_UTF8) else 0)
    first = opening.lstrip(codecs.BOM_UTF8 + b" \t\r\n")[:1]
    if first != b"[":
        found = {b"{": "an object", b"": "an empty file"}.get(first, "something else")
        raise UserError(f"{path}: expected LLaVA's JSON, an array of records; found {found}")
    number = 0
    try:
        for number, row in enumerate(ijson.items(file, "item"), start=1):
            yield number, row
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a JSON array in UTF-8; after entry {number}: {_said(error)}") from error


def _said(error: Exception) -> str:
    """What the parser says, without its drawing of the place; of text that is no UTF-8 it says bytes."""
    said = error.args[0]
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(error)
    return text.partition("\n")[0]


def _json_lines(file: BinaryIO, path: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number}: expected one JSON object a line; {error}") from error

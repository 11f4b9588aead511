"""Read LLaVA's JSON and JSONL one record at a time, so that the file is never held in memory."""

import codecs
import hashlib
import json
import mmap
import os
import posixpath
import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import ijson

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.encodings import refuse_wide
from sea_pipeline.inputs.json_array import array_values
from sea_pipeline.inputs.media_keys import media_keys
from sea_pipeline.inputs.other_formats import PLACE, check_other_formats
from sea_pipeline.storage.http_parts import is_http
from sea_pipeline.storage.paths import is_url


@dataclass(frozen=True)
class UnheldLine:
    """A line of a `.jsonl` that may be JSON, but holds what Python cannot.

    That is text that is not UTF-8, or a number of thousands of digits.
    """

    problem: str


def records(path: Path, *, strict: bool = True) -> Iterator[tuple[int, Any]]:
    """Read the records of a `.json` (an array) or `.jsonl` (one object a line) file in their order.

    Args:
        path: the file.
        strict: refuse a record that is not LLaVA's, see `check_record`; if False it is yielded as it is.

    Yields:
        The number of the entry or, in a `.jsonl`, of the line, from 1; and the record or an `UnheldLine`. A record has
        `image` or `conversations`; nothing else of it has been checked.

    Raises:
        UserError: the file cannot be read, is not JSON in UTF-8, or holds something else than such records.
    """
    try:
        with path.open("rb") as file:
            yield from records_of(file, str(path), strict=strict)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def records_of(file: BinaryIO, path: str, *, strict: bool = True) -> Iterator[tuple[int, Any]]:
    """Read the records of an open file that is called `path`.

    See `records`.

    Args:
        file: the file, from its beginning.
        path: its name, for the kind of file and for messages.
        strict: see `records`.
    """
    refuse_wide(file, path)
    for number, row in _json_lines(file, path) if has_lines(path) else _json_array(file, path):
        if strict and not isinstance(row, UnheldLine):
            with naming(path, number):
                check_record(row, path)
        yield number, row


def readable_records(path: Path) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Yield the images of each record and the record, without those that cost `list_samples` one image.

    Raises:
        UserError: see `records`.
    """
    for _, row in records(path):
        try:
            images = images_of(row)
        except UserError:
            continue
        yield images, row


def check_record(row: Any, path: Path | str) -> None:  # noqa: ANN401 - whatever a data file holds
    """Refuse a value from a file that is no record of LLaVA's.

    Raises:
        UserError: names what it is.
    """
    if isinstance(row, UnheldLine):
        raise UserError(row.problem)
    if not isinstance(row, dict) or not {"image", "images", "conversations"} & row.keys():
        keys = ", ".join(map(shown, sorted(map(str, row))[:6])) if isinstance(row, dict) else ""
        found = f"the keys [{keys}]" if isinstance(row, dict) else type(row).__name__
        found += _ONE_ARRAY if isinstance(row, list) and has_lines(path) else ""
        raise UserError(f"expected a LLaVA record, an object with 'image' and 'conversations'; found {found}")


def shown(value: Any) -> str:  # noqa: ANN401 - whatever a data file holds
    """Format a value for a message, in at most 80 characters however long or deep it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)[:80]


@contextmanager
def naming(path: Path | str, number: int) -> Iterator[None]:
    """Put a record's place in the file before the message of a `UserError` in the block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {record_name(path, number)}: {error}") from error


def record_name(path: Path | str, number: int) -> str:
    """Name a record as `records` counts it in this file, `entry 3` or `line 3`."""
    return f"{'line' if has_lines(path) else 'entry'} {number}"


def grew_from(path: Path, sha256: str) -> bool:
    """Tell whether an earlier file of this sha256 became this one by records appended after its own.

    It did if the bytes up to the end of some record, followed by what ends the file, are the earlier file. Then the
    first record of an image is still the same.
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


def images_of(row: dict[str, Any] | UnheldLine) -> list[Any]:
    """Return the images of a record as the file has them, or none if it has text only.

    They are read from `image`, a path or a list of paths, or from `images` in its place. An empty path is
    none if the record has turns.

    Raises:
        UserError: a key names media that are not read, such as `video` or `image_path`; `image` and `images` differ;
            the turns mark the place of an image, and there is none; or Python does not hold the line.
    """
    if isinstance(row, UnheldLine):
        raise UserError(row.problem)
    turns = row.get("conversations")
    empty: tuple[object, ...] = (None, [], "") if isinstance(turns, list) and turns else (None, [])
    keys = [key for key in ("image", "images") if row.get(key) not in empty]
    found = [row[key] if isinstance(row[key], list) else [row[key]] for key in keys]
    if len(found) == 2 and found[0] != found[1]:
        raise UserError("expected 'image' or 'images'; found both, with other contents; remove one of them")
    images = found[0] if found else []
    if unread := media_keys(row, images):
        raise UserError(
            f"expected images under 'image' alone, not under {', '.join(map(shown, unread))}; found media there, which "
            "would not be read; name them in the record's 'image', a path or a list of paths, or remove the key"
        )
    if not images and _shows_image(turns):
        raise UserError(
            f"expected an image, because the turns have {PLACE}; found none, and the record names no image; name it "
            f"in 'image', or take {PLACE} out of the turns"
        )
    return images


def turns_of(row: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever a data file holds
    """Return the `conversations` of a record, as the file has them.

    Raises:
        UserError: the record says more beside its turns or in them, see `check_other_formats`.
    """
    check_other_formats(row)
    return row.get("conversations")


def _shows_image(turns: Any) -> bool:  # noqa: ANN401 - whatever a data file holds
    """Tell whether any of the turns marks the place of an image."""
    return isinstance(turns, list) and any(PLACE in str(turn.get("value")) for turn in turns if isinstance(turn, dict))


LONGEST_PATH = 1 << 15
"""Characters; no system has longer paths, and no server longer URLs."""


def relative_path(image: Any, root: str | None = None) -> str:  # noqa: ANN401 - whatever a data file holds
    """Convert an entry of `image` to the path of its file below the image root, normalised unless the root is a URL.

    Args:
        image: a path that starts at the root, or a full path below it, absolute or `file://`.
        root: the folder or URL that paths start at; None if full paths are refused.

    Raises:
        ValueError: it is no path, names no file, or leaves the root; says which.
    """
    check_path(image)
    if root is not None and is_url(root):
        path, leaves = _key(image, root.rstrip("/"))
    else:
        text: str = image
        if text[:5].lower() == "file:":
            url = urlsplit(text)
            text = unquote(url.path) if url.netloc in ("", "localhost") else f"//{text}"
        path = posixpath.normpath(text)
        if root is not None and _climbs(path):
            path = _below(path, root) or path
        leaves = "://" in text or _climbs(path)
    if path in (".", ""):
        raise ValueError("expected 'image' to be a path; found the image root itself")
    if leaves:
        raise ValueError("the path leaves the image root; paths in data files start there")
    return path


def _key(image: str, root: str) -> tuple[str, bool]:
    """Return the part of a path below a URL, letter by letter, or all of it with its query; and whether it leaves."""
    path = image.removeprefix(f"{root}/")
    is_full, whole = path != image, ""
    if is_full and is_http(root):
        written, _, query = path.partition("#")[0].partition("?")
        path, whole = unquote(written), f"{root}/{written}?{query}" if query else ""
    elif not is_full and path.startswith("./"):
        path = path[2:]
    below = path.lstrip("/") if is_full else path
    leaves = _climbs(posixpath.normpath(below)) if is_http(root) else not is_full and _climbs(path)
    return whole or path, leaves or "://" in path


def _climbs(path: str) -> bool:
    return path.startswith(("/", "../")) or path == ".."


def check_path(image: Any) -> None:  # noqa: ANN401 - whatever a data file holds
    """Refuse an entry of `image` that is no path, whatever the root is.

    Raises:
        ValueError: says why.
    """
    if not isinstance(image, str) or not image or "\0" in image:
        raise ValueError(f"expected 'image' to be a path; found {shown(image)}")
    if len(image) > LONGEST_PATH:
        raise ValueError(f"expected 'image' to be a path; found a text of {len(image):,} characters")
    try:
        image.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the path is not UTF-8, or holds half of a UTF-16 pair; it names no file") from None


def _below(path: str, root: str) -> str | None:
    """Return the part of a path below the root, or None if it does not lie there.

    The path may begin with the root as it is written, or with the folder that the root's links lead to.
    """
    plain, real = _roots(root)
    full = posixpath.normpath(posixpath.join(plain, path))
    for candidate in (full, None):
        whole = candidate or posixpath.join(_real_folder(posixpath.dirname(full)), posixpath.basename(full))
        for start in (plain, real):
            if whole.startswith(f"{start.rstrip('/')}/"):
                return whole[len(start.rstrip("/")) + 1 :]
    return None


@lru_cache(maxsize=64)
def _roots(root: str) -> tuple[str, str]:
    return os.path.abspath(root), os.path.realpath(root)  # noqa: PTH100 - a Path keeps `..` behind a link


@lru_cache(maxsize=65_536)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def has_lines(path: Path | str) -> bool:
    """Tell whether a file is read as one record a line, which its name alone decides."""
    return str(path).lower().endswith(".jsonl")


_ONE_ARRAY = "; if the file is one array, end its name with .json"
_BEFORE_JSON = codecs.BOM_UTF8 + b" \t\r\n"


def _json_array(file: BinaryIO, path: str) -> Iterator[tuple[int, Any]]:
    opening = file.read(1 << 16)
    file.seek(3 if opening.startswith(codecs.BOM_UTF8) else 0)
    line, _, rest = opening.lstrip(_BEFORE_JSON).partition(b"\n")
    first = line[:1]
    if first != b"[":
        found = {b"{": "an object", b"": "an empty file"}.get(first, "something else")
        lines = first + rest.lstrip()[:1] == b"{{" and _is_json(line)
        advice = "" if path.lower().endswith(".json") else "; give a .json or .jsonl file, and unpack it first"
        advice = "; one object a line is JSONL: rename it to .jsonl" if lines else advice
        raise UserError(f"{path}: expected LLaVA's JSON, an array of records; found {found}{advice}")
    number = 0
    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)  # no limit, because ijson's C code ends the process at a number beyond it
    try:
        for number, row in array_values(file):
            yield number, row
    except UserError:
        raise
    except (ijson.JSONError, ArithmeticError, ValueError, RecursionError) as error:  # also for bytes that are no UTF-8
        raise UserError(f"{path}: expected a JSON array in UTF-8; after entry {number}: {_said(error)}") from error
    finally:
        sys.set_int_max_str_digits(digits)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _said(error: Exception) -> str:
    """Return the parser's message without its drawing of the place.

    The parser's message is in bytes if the text is no UTF-8.
    """
    said = error.args[0] if error.args else ""
    if isinstance(error, ArithmeticError):
        return "a number that is too large"
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(error)
    return text.partition("\n")[0]


def _json_lines(file: BinaryIO, path: str) -> Iterator[tuple[int, Any]]:
    expected = "expected one JSON object a line"
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield number, json.loads(line, parse_constant=lambda _: None)  # NaN becomes None, as in .json
            except (json.JSONDecodeError, RecursionError) as error:
                array = line.lstrip(_BEFORE_JSON).startswith(b"[")
                raise UserError(f"{path}: line {number}: {expected}; {error}{_ONE_ARRAY if array else ''}") from error
            except UnicodeDecodeError as error:
                found = f"the byte 0x{line[error.start]:02x} at place {error.start + 1}"
                yield number, UnheldLine(f"{expected} in UTF-8; found {found}; convert the file or mend the line")
            except ValueError:
                most = sys.get_int_max_str_digits()
                yield number, UnheldLine(f"{expected}; found a number of more than {most} digits; mend the line")

"""Read JSON files, check the values in ours, and encode JSON that every program reads."""

import datetime
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.storage.retry import refuse_unreadable

_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _moment(text: str) -> str:
    try:
        datetime.datetime.fromisoformat(text if _DATE.fullmatch(text) else "")
    except ValueError:
        raise ValueError("expected an ISO 8601 date with a time and its zone") from None
    return text


def _inside(path: str) -> str:
    if not path.isprintable() or {"", ".", ".."} & set(path.split("/")):
        raise ValueError("expected a path below the folder")
    return path


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("expected text without a NUL")
    return text


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""A sha256 as `hashing.file_sha256` writes it."""
Seconds = Annotated[float, Field(ge=0)]
Moment = Annotated[str, AfterValidator(_moment)]
PathInside = Annotated[str, AfterValidator(_inside)]
"""A relative path with slashes that does not leave its folder."""
Text = Annotated[str, AfterValidator(_without_nul)]


def json_object(data: bytes) -> dict[str, Any]:
    """Parse the object that a JSON file of ours holds.

    Raises:
        ValueError: it is empty, no UTF-8, no JSON, no object, or holds a number that is not finite.
    """
    if not data.strip():
        raise ValueError("expected a JSON object; found nothing in it")
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=finite, parse_float=finite)
    except UnicodeDecodeError as error:
        raise ValueError(f"expected JSON in UTF-8; found another byte at position {error.start:,}") from error
    except RecursionError as error:
        raise ValueError("expected a JSON object; found one that is nested too deeply") from error
    except json.JSONDecodeError as error:
        said = f"{error.msg[0].lower()}{error.msg[1:]} (line {error.lineno}, column {error.colno})"
        raise ValueError(f"expected a JSON object; {said}") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object; found {found!r:.40}")
    return found


def finite(text: str) -> float:
    """Convert a number of a JSON text, which json also reads as NaN or an infinity.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(number := float(text)):
        raise ValueError(f"expected finite numbers; found {text:.20}")
    return number


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its pairs, of which json would keep the last of each key without a word.

    Raises:
        ValueError: a key occurs twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        again = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"an object has the key {again[:80]!r} twice; keep one of them")
    return found


def strict_json(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """Encode a value as JSON on one line, with null for each number that is not finite, because JSON has no others."""
    return json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None))


def read_json(path: Path, absent: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read the object in a JSON file that other programs may have written.

    Args:
        path: the file.
        absent: what to return if the file does not exist; None if it must exist.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    if absent is not None and not path.exists():
        return absent
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        refuse_unreadable(path, error)
        raise UserError(f"{path}: cannot be read: {error.strerror}; restore it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {one_line(error)}; restore it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object; found {found!r:.40}; restore it")
    return found

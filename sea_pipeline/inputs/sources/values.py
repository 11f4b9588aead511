"""Convert values of Arrow's columns to the bytes of images and to ids, whatever system wrote them.

Arrow holds values that Python cannot, such as text that is not UTF-8 and dates beyond the year 9999. Such a value costs
only its own row.
"""

import datetime
import decimal
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

IDS = "text, bytes, UUIDs, numbers, booleans, dates or times"
"""What a column of ids may hold, for messages."""
IMAGES = "binary, or a struct of bytes and path, one image a row"
"""What a column of images may hold, for messages."""
FAULTS = (pa.ArrowException, OSError, UnicodeDecodeError)
"""The exceptions of reading a file with Arrow; the last one comes from names of columns."""

_UNITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
"""Decimal digits of a second, by unit."""
_DAY = 24 * 60 * 60


class NoId(NamedTuple):
    """What was found in a row instead of an id."""

    found: str


MISSING = NoId("none")
NOT_A_NUMBER = NoId("NaN")


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values themselves, without dictionaries, runs and extensions of numbers or bytes."""
    while True:
        if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType) and not pa.types.is_nested(kind.storage_type):
            kind = kind.storage_type
        else:
            return kind


def plain(values: pa.Array) -> pa.Array:
    """Convert values to their `plain_type`."""
    while values.type != plain_type(values.type):
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        elif pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        else:
            values = pc.run_end_decode(values)
    return values


def is_plain_bytes(kind: pa.DataType) -> bool:
    """Tell whether a column holds bytes in one of the two usual types."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Tell whether each value is a sequence of bytes, of any type."""
    kind = plain_type(kind)
    if _is_list(kind):
        return bool(pa.types.is_uint8(kind.value_type) or pa.types.is_int8(kind.value_type))
    return bool(is_plain_bytes(kind) or pa.types.is_binary_view(kind))


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a column holds text."""
    kind = plain_type(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_id(kind: pa.DataType) -> bool:
    """Tell whether the values of a column can be ids.

    See `IDS`.
    """
    kind = plain_type(kind)
    tests = (
        *(is_text, is_plain_bytes, pa.types.is_binary_view, pa.types.is_fixed_size_binary, pa.types.is_boolean),
        *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
        *(pa.types.is_date, pa.types.is_timestamp, pa.types.is_time),
    )
    return any(test(kind) for test in tests)


def described(schema: pa.Schema) -> str:
    """Describe the columns by name, with the types of those that hold neither text nor numbers, in 200 characters."""
    shown = [
        name if is_text(kind) or pa.types.is_primitive(kind) else f"{name} ({kind})"
        for name, kind in zip(schema.names, schema.types, strict=True)
    ]
    return ", ".join(shown)[:200] or "nothing"


def bytes_of(values: pa.Array) -> Iterator[bytes | None]:
    """Yield each value of a column for which `is_bytes` holds, or None if a row has none."""
    values = plain(values)
    if not _is_list(values.type):
        yield from values.to_pylist()
        return
    for value in values:
        numbers = value.values
        yield None if numbers is None or numbers.null_count else numbers.to_numpy().tobytes()


def id_texts(chunks: Sequence[pa.Array]) -> list[str | NoId]:
    """Convert a file's column for which `is_id` holds to ids.

    Text stays as it is. Bytes are decoded as UTF-8, with surrogate escapes for others. Fixed-size values of 16 bytes
    are UUIDs, unless all of them are letters. Numbers are written as Python writes them, dates and times in ISO 8601,
    at UTC.
    """
    if not chunks:
        return []
    kind, declared = plain_type(chunks[0].type), getattr(chunks[0].type, "extension_name", None) == "arrow.uuid"
    parts = [plain(chunk) for chunk in chunks]
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16:
        values = [value for part in parts for value in part.to_pylist()]
        if declared or not all(value is None or _is_letters(value) for value in values):
            return [MISSING if value is None else str(uuid.UUID(bytes=value)) for value in values]
    return [MISSING if value in (None, "") else value for part in parts for value in _texts(part)]


def text_ids(values: Iterable[str | None]) -> list[str | NoId]:
    """Convert a column of a text file to ids, with `MISSING` for empty values."""
    return [value or MISSING for value in values]


def _texts(values: pa.Array) -> Iterable[str | NoId | None]:
    kind = values.type
    if is_text(kind):
        return _decoded(values)
    if pa.types.is_temporal(kind):
        return map(_when(kind), values.view(pa.int64() if kind.bit_width == 64 else pa.int32()).to_pylist())
    return (None if value is None else _written(value) for value in values.to_pylist())


def _decoded(values: pa.Array) -> list[str | None]:
    try:
        texts: list[str | None] = values.to_pylist()
    except UnicodeDecodeError:  # one by one, with surrogate escapes for bytes that are not UTF-8
        stored = (value.as_buffer().to_pybytes() if value.is_valid else None for value in values)
        return [None if value is None else value.decode(errors="surrogateescape") for value in stored]
    return texts


def _written(value: Any) -> str | NoId:  # noqa: ANN401 - a bool, a number, bytes
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return NOT_A_NUMBER if math.isnan(value) else NoId("an infinite number")
    return f"{value:f}" if isinstance(value, decimal.Decimal) else repr(float(value))


def _when(kind: pa.DataType) -> Callable[[int | None], str | NoId | None]:
    """Return a function that writes the stored numbers of a date or time type as text."""
    digits = 0 if pa.types.is_date32(kind) else 3 if pa.types.is_date64(kind) else _UNITS[kind.unit]
    seconds = _DAY if pa.types.is_date32(kind) else 1

    def written(value: int | None) -> str | NoId | None:
        if value is None:
            return None
        whole, rest = divmod(value, 10**digits)
        try:
            text = (datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=whole * seconds)).isoformat()
        except OverflowError:
            return NoId(f"{value} as {kind}, which is beyond the years 1 to 9999")
        if pa.types.is_date(kind):
            return text[:10]
        text += f".{rest:0{digits}d}".rstrip("0") if rest else ""
        if pa.types.is_time(kind):
            return text[11:] if 0 <= whole < _DAY else NoId(f"{value} as {kind}, which is no time of a day")
        return f"{text}+00:00" if kind.tz else text

    return written


def _is_letters(value: bytes) -> bool:
    return value.isascii() and value.decode().isprintable()


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    return any(test(kind) for test in (*tests, *views))

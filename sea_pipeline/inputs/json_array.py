"""Read a JSON array value by value, also with what Python writes and JSON, or the fast parser, lacks.

That is NaN, Infinity and halves of UTF-16 pairs, such as a cut emoji, which `json.dumps` writes as an escape.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import ijson
from ijson.backends import python as slow_parser

_CHUNK = 1 << 20
_TOKEN = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")|".*\Z|[-A-Za-z]+\Z|-?Infinity|NaN', re.DOTALL)
"""A whole string (the group), a string that continues after these bytes, a word that may, or a number JSON lacks."""
_HALF = re.compile(
    rb"\\u[dD](?:[89abAB]..(?=.{4})(?!\\u[dD][c-fC-F])|(?<!(?<!\\)\\u[dD][89abAB]..\\u[dD])[c-fC-F])", re.DOTALL
)
"""The escape of a high half that no low one follows, or of a low half that no high one precedes.

It also finds what looks like one behind a backslash that is escaped itself, see `_has_half`.
"""
_BEFORE, _AFTER = 7, 9
"""Bytes that it looks at before a low half, and after the first byte of a high one."""


def array_values(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Yield the values with their numbers from 1, and None for each number that JSON lacks.

    The file is parsed as it is. Only if the parser finds such a number, it is read again from the start through
    `JsonNumbers`, and the values that were given already are skipped. The same holds for half of a UTF-16 pair and
    ijson's slow parser, because the fast one joins the half with the escape after it, or fails.

    Raises:
        ijson.JSONError: it is no JSON, or not in UTF-8.
    """
    start, number, numbers, halves = file.tell(), 0, False, False
    while True:
        file.seek(start)
        given: Any = JsonNumbers(file) if numbers else file
        try:
            values = slow_parser.items(given, "item") if halves else ijson.items(_WholePairs(given), "item")
            for found in islice(enumerate(values, start=1), number, None):
                number = found[0]
                yield found
            return
        except _HalfError:
            numbers = halves = True
        except ijson.JSONError as error:
            if numbers or "invalid char in json text" not in str(error):
                raise
            numbers = True


class _HalfError(Exception):
    pass


class _WholePairs:
    """A file to read forward, which raises an error instead of bytes with half of a UTF-16 pair."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401 - a file, or JsonNumbers
        self._file = file
        self._seen = self._held = b""

    def read(self, size: int) -> bytes:
        """Read the next bytes, and keep back the last ones, which may be the beginning of a pair."""
        while size:
            data = self._file.read(size)
            text = self._seen + self._held + (data or b" " * _AFTER)
            start = len(self._seen)
            if _has_half(text, start):
                raise _HalfError
            end = max(start, len(text) - _AFTER)
            given, self._held = text[start:end], text[end:] if data else b""
            self._seen = text[max(0, end - _BEFORE) : end]
            if given or not data:
                return given
        return b""


def _has_half(text: bytes, start: int) -> bool:
    found = _HALF.search(text, start)
    while found:
        before = text[: found.start()]
        backslashes = len(before) - len(before.rstrip(b"\\"))
        if backslashes % 2 == 0 or backslashes == len(before):  # else it is escaped itself, and begins no escape
            return True
        found = _HALF.search(text, found.start() + 1)
    return False


class JsonNumbers:
    """A file to read forward, in which each NaN or infinity is `null`, because the value it stands for is missing.

    It is slower than the file, because it looks at every string so as not to change the words in it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Read the next bytes, not necessarily `size` of them.

        Returns no bytes at the end, or if none are asked for.
        """
        while size:
            data = self._file.read(_CHUNK)
            text, self._rest = self._rest + data, b""
            if (given := _TOKEN.sub(self._unless_cut if data else _as_json, text)) or not data:
                return given
        return b""

    def _unless_cut(self, token: re.Match[bytes]) -> bytes:
        """Write the token as JSON.

        If it may continue after these bytes, keep it for the next read.
        """
        if token[1] is None and token.end() == len(token.string):
            self._rest = token[0]
            return b""
        return _as_json(token)


def _as_json(token: re.Match[bytes]) -> bytes:
    return b"null" if token[0] in (b"NaN", b"Infinity", b"-Infinity") else token[0]

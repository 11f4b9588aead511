"""A JSON array one value at a time, as Python and pandas write it: with NaN and Infinity, which JSON has not."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import ijson

_CHUNK = 1 << 20
_TOKEN = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")|".*\Z|[-A-Za-z]+\Z|-?Infinity|NaN', re.DOTALL)
"""A whole string (the group), one that goes on behind the bytes, a word that may go on there, or such a number."""


def array_values(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """The values with their numbers from 1; None in place of numbers that JSON has not.

    Raises:
        ijson.JSONError: it is no JSON, or not in UTF-8.
    """
    start, number = file.tell(), 0
    try:
        for number, value in enumerate(ijson.items(file, "item"), start=1):
            yield number, value
    except ijson.JSONError as error:
        if "invalid char in json text" not in str(error):
            raise
        file.seek(start)
        yield from islice(enumerate(ijson.items(JsonNumbers(file), "item"), start=1), number, None)


class JsonNumbers:
    """A file to read forward, with `null` for each number that JSON has not: what it stands for is missing.

    Slower than the file: every string is looked at, for a number to be none of its words.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rest = b""

    def read(self, size: int) -> bytes:
        """The next bytes, not just so many; none at the end, and none where none are asked for."""
        while size:
            data = self._file.read(_CHUNK)
            text, self._rest = self._rest + data, b""
            if (given := _TOKEN.sub(self._unless_cut if data else _as_json, text)) or not data:
                return given
        return b""

    def _unless_cut(self, token: re.Match[bytes]) -> bytes:
        """The token as JSON; if it may go on behind these bytes, it is kept for later."""
        if token[1] is None and token.end() == len(token.string):
            self._rest = token[0]
            return b""
        return _as_json(token)


def _as_json(token: re.Match[bytes]) -> bytes:
    return b"null" if token[0] in (b"NaN", b"Infinity", b"-Infinity") else token[0]

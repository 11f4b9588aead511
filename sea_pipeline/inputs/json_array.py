"""Read a JSON array value by value, also with the NaN and Infinity that Python and pandas write and JSON lacks."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import ijson

_CHUNK = 1 << 20
_TOKEN = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")|".*\Z|[-A-Za-z]+\Z|-?Infinity|NaN', re.DOTALL)
"""A whole string (the group), a string that continues after these bytes, a word that may, or a number JSON lacks."""


def array_values(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Yield the values with their numbers from 1, and None for each number that JSON lacks.

    The file is parsed as it is. Only if the parser finds such a number, it is read again from the start through
    `JsonNumbers`, and the values that were given already are skipped.

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

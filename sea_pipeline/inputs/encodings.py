"""Tell which of Unicode's encodings a text file has, where UTF-8 is expected."""

import codecs
from contextlib import suppress
from typing import BinaryIO

from sea_pipeline.core.errors import UserError

_UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HEAD = 4096


def wide_encoding(raw: bytes) -> str | None:
    """Name the encoding of two or four bytes a character that a file has, by its mark or its zeros, or None."""
    for name, marks in (("utf-32", _UTF_32), ("utf-16", _UTF_16)):
        if raw.startswith(marks):
            return name
    even, odd = raw[::2].count(0), raw[1::2].count(0)  # the first byte of A is 0 if the high byte comes first
    order = "be" if even > odd else "le"
    share = (even + odd) / max(1, len(raw))
    for size, least in ((32, 1 / 2), (16, 1 / 4)):
        with suppress(UnicodeDecodeError):
            text = raw.decode(f"utf-{size}-{order}")
            if "\0" not in text and (share >= least or (size == 16 and share and "\n" in text)):
                return f"utf-{size}{order}"
    return None


def refuse_wide(file: BinaryIO, shown: str) -> None:
    """Refuse an open file, from its beginning, if it has two or four bytes a character.

    Raises:
        UserError: names the encoding, and the command that converts it.
    """
    begun = file.tell()
    head = file.read(_HEAD)
    file.seek(begun)
    if wide := wide_encoding(head):
        raise UserError(f"{shown}: expected UTF-8, found {wide}; convert it with: iconv -f {wide} -t utf-8")

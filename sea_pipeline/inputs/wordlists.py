"""Read, normalise, check and hash word lists; word ids are positions in the normalised list."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.captions import IGNORABLE, JOINERS, is_needed
from sea_pipeline.inputs.encodings import wide_encoding
from sea_pipeline.inputs.wordlist_mining import mine
from sea_pipeline.storage.paths import data_folder

MAX_WORDS = 65_535
"""The most words of a list, because word ids are stored as uint16 and 65,535 means "no label"."""
MINED = "mine:"
"""Prefix of a file of captions from which a list is mined, then `GENERAL` follows; see `wordlist_mining.mine`."""
GENERAL = "2of12"
_UNSEEN = {"Cc", "Cf", "Co", "Zl", "Zp", "Zs"}
"""Unicode's categories of control and format characters, of private use, and of separators."""
_PICTURE = (
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001faff][\U0001f3fb-\U0001f3ff]?[\ufe0e\ufe0f]?"
)
_EMOJI = re.compile(
    f"\U0001f3f4[\U000e0030-\U000e007a]{{3,6}}\U000e007f|{_PICTURE}(?:\u200d{_PICTURE})*|[0-9#*]\ufe0f\u20e3"
)
"""Emoji (Unicode's UTS 51): flags of parts of countries, pictures with their style, alone or joined, and keys."""

_WINDOWS_MARKS = {0x80, 0x82, 0x84, 0x85, *range(0x91, 0x98), 0x99}
"""Quotes, dashes, the ellipsis, the euro and the trademark in Windows' encodings of Europe; letters elsewhere."""


@dataclass(frozen=True)
class WordList:
    """A normalised list of distinct words.

    Two lists are the same if and only if their hashes are, whatever their names.
    """

    name: str
    words: tuple[str, ...]
    """Normalised and distinct."""

    @cached_property
    def sha256(self) -> str:
        """Return the hexadecimal hash of `text()`."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.words)

    def text(self) -> str:
        """Return the normalised list as a file holds it, in UTF-8 with one word per line."""
        return "".join(f"{word}\n" for word in self.words)


def load_wordlist(spec: str) -> WordList:
    """Read a word list by its name (`2of12`) or from a file, or mine it from captions.

    A file is UTF-8 with one word or phrase per line. Words are stripped and brought to Unicode form NFC. Blank lines
    and a byte order mark at the beginning are dropped; order and case are kept. With `mine:` in front, the file is
    LLaVA's JSON or JSONL, and the list is what its captions name, followed by 2of12; see `wordlist_mining.mine`.

    Raises:
        UserError: no such list, not UTF-8, empty, a word twice, invisible characters, or over 65,535 words; or a file
            of captions that is none.
    """
    path = find_wordlist(spec)
    if spec.startswith(MINED):
        return WordList(f"mine-{path.stem}", mine(path, load_wordlist(GENERAL).words, MAX_WORDS))
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the word list cannot be read: {error.strerror}") from error
    words = parse_wordlist(raw, str(path))
    return WordList(path.stem, words)


def find_wordlist(spec: str) -> Path:
    """Find the file of a list, or the captions that it is mined from, without reading it.

    Raises:
        UserError: there is none.
    """
    if spec.startswith(MINED):
        captions = Path(spec.removeprefix(MINED))
        if not captions.is_file():
            raise UserError(f"--wordlist {spec}: expected LLaVA's JSON or JSONL with captions; found no such file")
        return captions
    path = Path(spec)
    builtin = data_folder("wordlists") / f"{spec}.txt"
    if not path.is_file() and "/" not in spec and builtin.is_file():
        return builtin
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in data_folder("wordlists").glob("*.txt")))
        raise UserError(
            f"--wordlist {spec}: expected a file, {MINED}CAPTIONS.json, or one of the lists {known}; found none of them"
        )
    return path


def parse_wordlist(raw: bytes, origin: str) -> tuple[str, ...]:
    """Parse and normalise the words of a file's bytes.

    See `load_wordlist`.

    Args:
        raw: the bytes.
        origin: the file's name, for errors.
    """
    wide = wide_encoding(raw)
    try:
        text = raw.decode("utf-8-sig")
        bad = raw.index(b"\0") if wide else None
    except UnicodeDecodeError as error:
        bad = error.start
    if bad is not None:
        line = raw.count(b"\n", 0, bad) + 1
        raise UserError(
            f"{origin}: expected UTF-8, found byte 0x{raw[bad]:02x} in line {line}; "
            + (f"convert it, for example with: iconv -f {wide} -t utf-8" if wide else _narrow(raw))
        )
    first_line: dict[str, int] = {}
    for number, word in _numbered_words(text):
        if (position := _unseen(word)) is not None:
            raise UserError(
                f"{origin}: line {number} holds {_called(word[position])} (U+{ord(word[position]):04X}), which nobody "
                f"sees, in {word!a:.80}; expected one word or phrase per line; remove it, or write a space"
            )
        if word in first_line:
            raise UserError(
                f"{origin}: expected every word once; found {word!r:.80} in lines {first_line[word]} and {number}"
            )
        first_line[word] = number
    if not first_line:
        raise UserError(f"{origin}: expected one word or phrase per line; found none")
    if len(first_line) > MAX_WORDS:
        raise UserError(f"{origin}: expected at most {MAX_WORDS:,} words, found {len(first_line):,}; shorten the list")
    return tuple(first_line)


def _narrow(raw: bytes) -> str:
    """Advise how to convert a file in an encoding that no byte of it names."""
    foreign = [byte for byte in raw if byte >= 0x80]
    quotes = [byte for byte in foreign if byte < 0xA0]
    letters = sum(byte < 0x80 and chr(byte).isalpha() for byte in raw)
    if quotes and _WINDOWS_MARKS.issuperset(quotes) and 4 * (len(foreign) - len(quotes)) <= letters:
        unsure = "" if len(quotes) == len(foreign) else "if its language is of Western Europe, "
        return f"{unsure}convert it with: iconv -f cp1252 -t utf-8"
    return (
        "nothing in the file names its encoding, so ask who wrote it, and convert it with: iconv -f ENCODING -t utf-8, "
        "such as cp1252 (Western Europe), cp1250 (Central Europe), cp1251 or koi8-r (Cyrillic), gbk, shift_jis, euc-kr"
    )


def _numbered_words(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if word := unicodedata.normalize("NFC", line.strip()):
            yield number, word


def _unseen(word: str) -> int | None:
    """Find the first character of a word that is invisible or only looks like a space, or None if there is none."""
    for position, character in enumerate(word):
        unseen = unicodedata.category(character) in _UNSEEN or ord(character) in IGNORABLE
        if unseen and character != " " and not _is_shown(word, position):
            return position
    return None


def _is_shown(word: str, position: int) -> bool:
    """Tell whether a character that draws nothing changes what its neighbours draw."""
    in_emoji = any(found.start() < position < found.end() for found in _EMOJI.finditer(word))
    return in_emoji or (word[position] in JOINERS and is_needed(word, position))


def _called(character: str) -> str:
    kinds = {"Cc": "a control character", "Co": "a character of private use"}
    return kinds.get(unicodedata.category(character)) or unicodedata.name(character)

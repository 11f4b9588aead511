"""Characters of word lists that nobody sees: refused with their line and name, but for those that a word needs."""

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.wordlists import parse_wordlist

UNSEEN = {
    "\u200b": "ZERO WIDTH SPACE", "\u200d": "ZERO WIDTH JOINER", "\u200c": "ZERO WIDTH NON-JOINER",
    "\u2060": "WORD JOINER", "\ufeff": "ZERO WIDTH NO-BREAK SPACE", "\u00a0": "NO-BREAK SPACE",
    "\u202f": "NARROW NO-BREAK SPACE", "\u3000": "IDEOGRAPHIC SPACE", "\u2009": "THIN SPACE",
    "\u00ad": "SOFT HYPHEN", "\u200e": "LEFT-TO-RIGHT MARK", "\u202e": "RIGHT-TO-LEFT OVERRIDE",
    "\u2066": "LEFT-TO-RIGHT ISOLATE", "\u2028": "LINE SEPARATOR", "\ufe0f": "VARIATION SELECTOR-16",
    "\u034f": "COMBINING GRAPHEME JOINER", "\u3164": "HANGUL FILLER", "\u2800": "BRAILLE PATTERN BLANK",
    "\U000e0041": "TAG LATIN CAPITAL LETTER A", "\x07": "a control character", "\t": "a control character",
    "\x85": "a control character", "\ue000": "a character of private use",
}  # fmt: skip


@pytest.mark.parametrize("mark", UNSEEN, ids=lambda mark: f"U+{ord(mark):04X}")
def test_what_nobody_sees_is_refused_with_its_line(mark: str) -> None:
    with pytest.raises(UserError) as found:
        parse_wordlist(f"cat\ndog\nhot{mark}dog\n".encode(), "list.txt")
    assert str(found.value).startswith(f"list.txt: line 3 holds {UNSEEN[mark]} (U+{ord(mark):04X}), ")
    assert mark not in str(found.value)


@pytest.mark.parametrize("mark", ["\u200b", "\ufeff", "\u00ad", "\u200e", "\u2060", "\u200d"])
@pytest.mark.parametrize("word", ["{}cat", "cat{}", " {} ", "{}"])
def test_at_an_end_of_a_word_too(mark: str, word: str) -> None:
    with pytest.raises(UserError, match=rf"line 2 holds .*\(U\+{ord(mark):04X}\)"):
        parse_wordlist(f"dog\n{word.format(mark)}\n".encode(), "list.txt")


def test_space_of_any_kind_around_a_word_is_cut_off() -> None:
    text = "\ufeffcat\r\n \u00a0dog\u3000\t\n\u00a0\n  \nhot dog\u2009\n"
    assert parse_wordlist(text.encode(), "x") == ("cat", "dog", "hot dog")


def test_joiners_that_a_script_needs_stay() -> None:
    persian, hindi = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937"
    assert parse_wordlist(f"{persian}\n{hindi}\n".encode(), "x") == (persian, hindi)


@pytest.mark.parametrize(
    ("one", "other"),
    [("caf\u00e9", "cafe\u0301"), ("\u00c5ngstr\u00f6m", "A\u030angstro\u0308m"), ("\u212bx", "\u00c5x")],
)
def test_a_word_in_two_spellings_of_unicode_is_one(one: str, other: str) -> None:
    (word,) = parse_wordlist(one.encode(), "x")
    assert (word,) == parse_wordlist(other.encode(), "x")
    with pytest.raises(UserError, match="in lines 1 and 3"):
        parse_wordlist(f"{one}\ndog\n{other}\n".encode(), "x")

"""Word lists: how they are read, what is refused in them, how they are mined, and what of captions they name."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.wordlists import load_wordlist, parse_wordlist
from tests.support.refused import refused


def test_2of12_is_the_list_that_its_readme_says() -> None:
    words = load_wordlist("2of12")
    assert len(words) == 41_242
    assert words.sha256 == "36dab6747b06843bbabeebb981b8c78b577150035fdfde56230258ebd0435252"
    assert (words.words[0], words.words[-1]) == ("a", "zymurgy")


def test_a_file_of_ones_own_is_normalised_and_hashed_by_content(tmp_path: Path) -> None:
    decomposed = "cafe\u0301"
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xef\xbb\xbf  Cat \r\n\r\n" + decomposed.encode() + b"\nice cream")
    words = load_wordlist(str(path))
    assert words.words == ("Cat", "café", "ice cream")
    assert words.sha256 == hashlib.sha256("Cat\ncafé\nice cream\n".encode()).hexdigest()
    assert words.name == "mine"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "found none"),
        (b" \n\n", "found none"),
        (b"cat\ndog\ncat\n", "'cat' in lines 1 and 3"),
        (b"cat\n\xe9t\xe9\n", "0xe9 in line 2"),
        (b"\x89PNG\x00\n", "byte 0x89 in line 1"),
        ("cat\n".encode("utf-16"), "0xff in line 1; convert it, for example with: iconv -f utf-16 -t utf-8"),
        (b"cat\ta\n", "line 1 holds a control character"),
        (b"\n".join(b"%d" % number for number in range(65_536)), "at most 65,535 words, found 65,536"),
    ],
)
def test_a_bad_list_is_one_clear_line(raw: bytes, expected: str) -> None:
    with refused(expected, match=r"list\.txt"):
        parse_wordlist(raw, "list.txt")


ONE_ANSWER = {
    "utf-16": "cat\nété\n", "utf-32": "cat\ndog\n",
    "utf-16-le": "cat\ndog\n", "utf-16-be": "cat\nété\n", "utf-16-le of Cyrillic": "кит\nлиж\n",
    "utf-16-be of Cyrillic": "кит\nлиж\n", "utf-16-le of one word": "cat",
    "utf-16-le of Chinese": "猫\n狗\n", "utf-32-be": "cat\ndog\n",
    "cp1252": "hot dog\n“quoted”\nit\u2019s\n",
    "cp1252 of French": "“café”\nfontaine\nl\u2019été \u2013 printemps\n",
}  # fmt: skip


@pytest.mark.skipif(shutil.which("iconv") is None, reason="needs iconv")
@pytest.mark.parametrize("case", ONE_ANSWER)
def test_the_advice_for_an_encoding_that_shows_is_right(case: str, tmp_path: Path) -> None:
    """Executed to the letter."""
    file = tmp_path / "list.txt"
    file.write_bytes(ONE_ANSWER[case].encode(case.partition(" ")[0]))
    with pytest.raises(UserError) as error:
        load_wordlist(str(file))
    command = re.search(r"with: (iconv -f \S+ -t utf-8)$", str(error.value))
    assert command, error.value
    done = subprocess.run([*command[1].split(), str(file)], capture_output=True, check=True)
    file.write_bytes(done.stdout)
    assert load_wordlist(str(file)).words == tuple(ONE_ANSWER[case].split("\n")[: ONE_ANSWER[case].count("\n") or 1])


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "кошка\nлиж\n"), ("koi8-r", "кошка\n"),
        ("cp1251", "“кошка”\n"), ("gbk", "猫\n狗\n汽车\n"), ("euc-kr", "고양이\n"),
        ("shift_jis", "猫\n犬\n"), ("iso8859-2", "kočka\npes\n"), ("latin1", "café\nhouse\n"),
        ("mac_roman", "café\nhouse\n"),
    ],
)  # fmt: skip
def test_an_encoding_that_does_not_show_is_not_guessed(encoding: str, text: str) -> None:
    with refused("nothing in the file names its encoding", "iconv -f ENCODING -t utf-8", match=r"list\.txt"):
        parse_wordlist(text.encode(encoding), "list.txt")


def test_a_zero_in_a_list_of_utf8_makes_no_other_encoding_of_it() -> None:
    for text in ("cat\ndo\0g\nbird\n", "\0cat\ndog\n", "\0" * 700):
        with refused("holds a control character (U+0000)"):
            parse_wordlist(text.encode(), "list.txt")


def test_the_longest_list_allowed() -> None:
    assert len(parse_wordlist(b"\n".join(b"%d" % number for number in range(65_535)), "x")) == 65_535


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="2of12"):
        load_wordlist("3of12")


def test_a_word_in_a_message_is_cut(tmp_path: Path) -> None:
    for words in ("\0" * 700, "a" * 700 + "\n" + "a" * 700):
        (tmp_path / "w.txt").write_text(words)
        with pytest.raises(UserError) as error:
            load_wordlist(str(tmp_path / "w.txt"))
        assert len(str(error.value)) < 300 + len(str(tmp_path))


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


EMOJI = (
    "\u2764\ufe0f", "\u2764\ufe0e", "\U0001f469\u200d\U0001f680", "\u2764\ufe0f\u200d\U0001f525",
    "\U0001f469\U0001f3fd\u200d\U0001f680", "\U0001f642\u200d\u2194\ufe0f", "\u203c\ufe0f", "1\ufe0f\u20e3",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "hot \u2600\ufe0f dog", "\u00a9\ufe0f", "\u24c2\ufe0f",
    "\u3299\ufe0f",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
)  # fmt: skip


def test_what_makes_one_emoji_of_its_parts_stays() -> None:
    assert parse_wordlist("\n".join(EMOJI).encode(), "x") == EMOJI


@pytest.mark.parametrize(
    "word",
    [
        "\u2764\u200d",
        "\u200d\u2764",
        "\u2764\ufe0f\ufe0f",
        "1\ufe0f",
        "a\ufe0f",
        "\u2764\u200dcat",
        "\u2764\U000e0067\U000e007f",
    ],
    ids=ascii,
)
def test_what_makes_no_emoji_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="which nobody sees"):
        parse_wordlist(word.encode(), "x")


@pytest.mark.parametrize(
    ("one", "other"),
    [("caf\u00e9", "cafe\u0301"), ("\u00c5ngstr\u00f6m", "A\u030angstro\u0308m"), ("\u212bx", "\u00c5x")],
)
def test_a_word_in_two_spellings_of_unicode_is_one(one: str, other: str) -> None:
    (word,) = parse_wordlist(one.encode(), "x")
    assert (word,) == parse_wordlist(other.encode(), "x")
    with pytest.raises(UserError, match="in lines 1 and 3"):
        parse_wordlist(f"{one}\ndog\n{other}\n".encode(), "x")

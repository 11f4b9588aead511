import hashlib
from pathlib import Path

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.wordlists import load_wordlist, parse_wordlist


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
    with pytest.raises(UserError, match=r"list\.txt") as error:
        parse_wordlist(raw, "list.txt")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


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

"""Word lists: how they are read, what is refused in them, how they are mined, and what of captions they name."""

import hashlib
import json
import math
import re
import shutil
import subprocess
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs import wordlist_mining
from sea_pipeline.inputs.captions import (
    FUNCTION_WORDS,
    Forms,
    content_spans,
    content_words,
    gpt_turns,
    in_list,
    is_entry,
    phrases,
    singular,
    word_runs,
)
from sea_pipeline.inputs.wordlist_mining import association, mine
from sea_pipeline.inputs.wordlists import MAX_WORDS, load_wordlist, parse_wordlist
from tests.support.refused import refused
from tests.support.world import Label, draw_folder


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


@pytest.mark.parametrize(
    ("one", "other"),
    [("caf\u00e9", "cafe\u0301"), ("\u00c5ngstr\u00f6m", "A\u030angstro\u0308m"), ("\u212bx", "\u00c5x")],
)
def test_a_word_in_two_spellings_of_unicode_is_one(one: str, other: str) -> None:
    (word,) = parse_wordlist(one.encode(), "x")
    assert (word,) == parse_wordlist(other.encode(), "x")
    with pytest.raises(UserError, match="in lines 1 and 3"):
        parse_wordlist(f"{one}\ndog\n{other}\n".encode(), "x")


def row(*captions: str, image: Any = "x.png") -> dict[str, Any]:
    turns = [turn for caption in captions for turn in ({"from": "human", "value": "what?"}, gpt(caption))]
    return {"conversations": turns} | ({} if image is None else {"image": image})


def gpt(caption: str) -> dict[str, str]:
    return {"from": "gpt", "value": caption}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows) if lines else json.dumps(rows))
    return path


SCRIPTS = {
    "Hindi": "एक कुत्ता पानी में खेलता है",
    "Hebrew with points": "הַכֶּלֶב רָץ בַּגַּן",
    "Arabic with vowels": "كَلْبٌ يَجْرِي",
    "Persian, which needs ZWNJ": "می\u200cخواهم کتاب",  # noqa: RUF001
    "Bengali, ZWJ before a virama": "র\u200d্যাব বাংলা",
    "Malayalam, ZWJ at an end": "അവന്\u200d വന്നു",
    "Tamil": "நாய் ஓடுகிறது",
    "Vietnamese": "con chó đang chạy",
    "an accent that NFC does not join": "xo\u030bz m\u0331ar",
}
"""Captions whose words stand between spaces."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_of_other_scripts_stay_whole(script: str, tmp_path: Path) -> None:
    caption = SCRIPTS[script]
    whole = unicodedata.normalize("NFC", caption).split()
    assert word_runs(caption) == [whole]
    assert [caption[start:end] for start, end in content_spans(caption)] == [w for w in caption.split() if len(w) > 1]
    assert word_runs(f"the {caption}, a dog's {caption}!") == [["the", *whole], ["a", "dog", *whole]]
    words = mine(write(tmp_path / "x.json", [row(caption)]), [], MAX_WORDS)
    assert sorted(words) == sorted({word for word in whole if len(word) > 1})
    assert parse_wordlist("".join(f"{word}\n" for word in words).encode(), "words.txt") == words, "may be given again"


def test_what_nobody_sees_in_a_caption_is_no_part_of_a_word() -> None:
    assert word_runs("foo\u200dbar dog\ufe0f \u2764\ufe0f big 1\ufe0f\u20e3 cat") == [
        ["foobar", "dog"],
        ["big"],
        ["cat"],
    ]


def test_by_hand(tmp_path: Path) -> None:
    rows = [
        *[row("a teddy bear and a dog") for _ in range(3)],
        row("two dogs, and the glasses of a man", "a dog"),
        row("men without hats", image=["a.png", "b.png"]),
        row("an Okapi with a zzyzx"),
        row("unicorns talk", image=None),
    ]
    general = ["a", "dog", "glass", "glasses", "man", "Okapi", "table", "teddy"]
    words = mine(write(tmp_path / "x.json", rows), general, MAX_WORDS)
    # dog: 3 and 1 in the plural and 1; the phrase is as frequent as its words; men is the plural of man.
    assert words == (
        "dog", "bear", "teddy", "teddy bear", "man", "Okapi", "glasses", "hats", "zzyzx", "a", "glass", "table"
    )  # fmt: skip
    assert mine(tmp_path / "x.json", general, 5) == words[:5]


@pytest.mark.slow
def test_neither_the_order_of_rows_nor_the_format_changes_the_list(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    things = ["dog", "cat", "traffic-light", "teddy bear", "glasses", "trees", "tree", "boxes", "box", "of", "and,"]
    rows = [row(" ".join(random.choice(things, 6))) for _ in range(200)]
    hashes = set()
    for name in ("a.json", "b.jsonl", "a/a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        random.shuffle(rows)  # type: ignore[arg-type]
        hashes.add(load_wordlist(f"mine:{write(tmp_path / name, rows)}").sha256)
    assert len(hashes) == 1
    assert load_wordlist(f"mine:{tmp_path / 'b.jsonl'}").name == "mine-b"


def test_counts_are_those_of_a_slow_twin(tmp_path: Path) -> None:
    """Leaving out the phrases of rare parts must not lose a frequent phrase."""
    random = np.random.default_rng(1)
    vocabulary = ["red", "old", "of", "the", "glass", "wine", *(f"word{chr(97 + n)}" for n in range(12))]
    odds = 1 / np.arange(1, len(vocabulary) + 1)
    captions = [" ".join(random.choice(vocabulary, 7, p=odds / odds.sum())) for _ in range(150)]
    captions += [f"{random.choice(vocabulary)} {word} of {word}ly {word}" for word in vocabulary[4:] for _ in range(4)]
    for number, word in enumerate("abcdefghijklmnopqrst"):  # ever less together
        captions += [f"left{word} right{word}"] * 4 + [f"left{word}, right{word}"] * 3 * number
    runs = [run for caption in captions for run in word_runs(caption)]
    grams = Counter(tuple(run[at : at + n]) for run in runs for n in (1, 2, 3) for at in range(len(run) - n + 1))
    total = sum(map(len, runs))
    expected, below, above = {}, 0, 0
    for words, count in grams.items():
        chance = math.prod(grams[(word,)] / total for word in words)
        npmi = math.log(count / total / chance) / -math.log(count / total) / max(1, len(words) - 1)
        below += len(words) > 1 and count > 2 and 0.28 < npmi < 0.3
        if is_entry(words) and (len(words) == 1 or (count > 2 and npmi >= 0.3)):
            expected[" ".join(words)] = count
            above += len(words) > 1 and npmi < 0.32
    order = sorted(expected, key=lambda entry: (-expected[entry], entry))
    assert list(mine(write(tmp_path / "x.json", [row(one) for one in captions]), [], MAX_WORDS)) == order
    assert sum(" " in entry for entry in order) > 10
    assert min(below, above) > 0
    assert sum(entry.count(" ") == 2 for entry in order) > 3


def test_association() -> None:
    assert association(5, [5, 5], 100) == pytest.approx(1)  # never apart
    assert association(5, [5, 5, 5], 100) == pytest.approx(1)
    assert association(1, [10, 10], 100) == pytest.approx(0)  # as often as chance has it
    assert association(4, [10, 20], 100) == pytest.approx(math.log(2) / -math.log(0.04))


def test_misspellings_of_large_files_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordlist_mining, "LEAST_SHARE", 0.25)
    rows = [row("a dog"), row("a dog"), *(row("a cat") for _ in range(6))]
    assert mine(write(tmp_path / "x.json", rows), ["table"], MAX_WORDS) == ("cat", "dog", "table")
    assert mine(write(tmp_path / "x.json", [*rows, row("an elk")]), ["table"], MAX_WORDS) == ("cat", "table")


@pytest.mark.slow
def test_at_most_as_many_as_ids_can_tell(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [f"q{a}{b}{c}{d}" for a in letters for b in letters for c in letters for d in "xyz"][:50_000]
    path = write(tmp_path / "x.json", [row(", ".join(names)), row("qaaax")])
    words = load_wordlist(f"mine:{path}")
    assert len(words) == MAX_WORDS == 65_535
    assert words.words[:2] == ("qaaax", "qaaay")
    general = load_wordlist("2of12").words
    assert words.words[50_000:] == general[: 65_535 - 50_000]


@pytest.mark.slow
def test_labels_keep_the_mined_list(label: Label, tmp_path: Path) -> None:
    draw_folder(tmp_path / "photos", 2)
    captions = write(tmp_path / "c.jsonl", [row("a red thing, a zzyzx")])
    run = label(images=str(tmp_path / "photos"), wordlist=f"mine:{captions}")
    words = (tmp_path / "labels" / "words.txt").read_text().split("\n")
    assert words[:4] == ["red", "thing", "zzyzx", "a"]
    assert run.ledger.dataset.fields["wordlist"]["sha256"] == load_wordlist(f"mine:{captions}").sha256
    write(captions, [row("a red thing, a zzyzx"), row("two things")])
    with pytest.raises(UserError, match="wordlist"):
        label(images=str(tmp_path / "photos"), wordlist=f"mine:{captions}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "expected LLaVA's JSON or JSONL with captions; found no such file"),
        ("{}", "expected LLaVA's JSON, an array of records"),
        ("[]", "found no content word"),
        (json.dumps([row("it is 3")]), "found no content word"),
        (json.dumps([row("a dog", image=None)]), "gpt turns of records with an image"),
    ],
)
def test_a_file_without_captions_is_one_clear_line(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    with refused(expected, str(path)):
        load_wordlist(f"mine:{path}")


@pytest.mark.parametrize(
    ("caption", "runs"),
    [
        ("A red circle, and a Blue square.", [["a", "red", "circle"], ["and", "a", "blue", "square"]]),
        ("the dog's ball; dogs' balls", [["the", "dog", "ball"], ["dogs"], ["balls"]]),
        ("The man\N{RIGHT SINGLE QUOTATION MARK}s t-shirt isn't red", [["the", "man", "t-shirt", "isn't", "red"]]),
        ("a Boeing 747 lands\nat 9am", [["a", "boeing"], ["lands", "at"]]),
        ("cafe\N{COMBINING ACUTE ACCENT} na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve", [["café", "naïve"]]),
        ("a great_white <unk> - shark -- 3D", [["a"], ["unk"], ["shark"]]),
        ("  \n", []),
    ],
)
def test_runs_of_words(caption: str, runs: list[list[str]]) -> None:
    assert word_runs(caption) == runs


def test_content_words_and_phrases_do_not_begin_or_end_with_function_words() -> None:
    caption = "a glass of red wine is on the table, it isn't x full"
    assert content_words(caption) == ["glass", "red", "wine", "table", "full"]
    assert phrases(caption) == ["red wine", "glass of red"]
    assert phrases("a cup of tea and cake") == ["cup of tea", "tea and cake"]
    assert phrases("black cat") == ["black cat"]
    assert phrases("black, cat") == []


def test_function_words_are_words() -> None:
    assert {"a", "the", "of", "and", "is", "would", "themselves"} <= FUNCTION_WORDS
    assert not {"articles", "quantities", "auxiliaries", "dog", "red", "man"} & FUNCTION_WORDS
    assert all(word.isalpha() and word.islower() for word in FUNCTION_WORDS)
    assert 150 < len(FUNCTION_WORDS) < 300


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plural", "single"),
    [
        ("dogs", "dog"),
        ("boxes", "box"),
        ("horses", "horse"),
        ("buses", "bus"),
        ("beaches", "beach"),
        ("berries", "berry"),
        ("cookies", "cookie"),
        ("potatoes", "potato"),
        ("shoes", "shoe"),
        ("knives", "knives"),
        ("gloves", "glove"),
        ("firemen", "fireman"),
        ("traffic lights", None),
        ("grass", "grass"),
        ("glasses", "glasses"),
        ("women", "women"),
        ("snowmen", "snowman"),
        ("james", None),
        ("zzzs", None),
    ],
)
def test_plurals_in_2of12(plural: str, single: str | None) -> None:
    assert in_list(plural, set(load_wordlist("2of12").words)) == single


def test_only_the_list_makes_a_singular() -> None:
    assert in_list("dogs", {"dog", "dogs"}) == "dogs"
    assert singular("dogs", {"dog", "dogs"}) == "dog"
    assert in_list("dog", {"dogs"}) is None
    assert in_list("traffic lights", {"traffic light", "light"}) == "traffic light"
    assert in_list("glass", {"glas"}) is None


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("dogs", "dog"), ("boxes", "box"), ("berries", "berry"), ("knives", "knife"), ("children", "child"),
        ("snowmen", "snowman"), ("t-shirts", "t-shirt"), ("watches", "watch"), ("tattoos", "tattoo"),
        ("playing", "play"), ("jumped", "jump"), ("hoping", "hope"), ("hopped", "hop"), ("riding", "ride"),
        ("swimming", "swim"), ("visiting", "visit"), ("travelled", "travel"), ("falling", "fall"), ("passed", "pass"),
        ("agreed", "agree"), ("seeing", "see"), ("skiing", "ski"), ("carried", "carry"), ("carrying", "carry"),
        ("lying", "lie"), ("panicked", "panic"), ("quitting", "quit"), ("mixed", "mix"), ("showing", "show"),
        ("ran", "run"), ("ridden", "ride"), ("sat", "sit"), ("ran", "running"), ("plays", "played"), ("swam", "swims"),
    ],
)  # fmt: skip
def test_forms_of_one_word(word: str, other: str) -> None:
    for one, listed in ((word, other), (other, word), (word, other.upper())):
        assert Forms([listed]).has_other(one)
        assert not Forms([listed]).has(one)
        assert Forms([listed, one]).has(one)


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("hoping", "hop"), ("staring", "star"), ("planes", "planned"), ("planing", "plans"), ("riding", "rid"),
        ("thing", "th"), ("spring", "spr"), ("bed", "b"), ("seed", "see"), ("feed", "fee"), ("red", "re"),
        ("player", "play"), ("bigger", "big"), ("caves", "cafe"), ("rose", "rise"), ("ground", "grind"),
        ("grass", "gras"), ("dog", "cat"), ("painting", "pain"), ("dogs playing", "dog"),
    ],
)  # fmt: skip
def test_other_words_are_no_forms(word: str, other: str) -> None:
    assert not Forms([other]).has_other(word)
    assert not Forms([word]).has_other(other)


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "one"}]}, ["one"]),
        ({"conversations": [{"from": "gpt", "value": "a"}, {"from": "assistant", "value": "b"}]}, ["a", "b"]),
        ({"conversations": [{"from": "gpt", "value": None}, {"from": "gpt"}, "gpt", None]}, []),
        ({"conversations": "gpt"}, []),
        ({"image": "x.png"}, []),
    ],
)
def test_captions_are_gpt_turns(row: dict[str, Any], turns: list[str]) -> None:
    assert gpt_turns(row) == turns

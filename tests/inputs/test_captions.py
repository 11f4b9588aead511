"""Words, phrases and forms of words in captions."""

import re
from typing import Any

import pytest

from sea_pipeline.inputs.captions import (
    FUNCTION_WORDS,
    Forms,
    content_words,
    gpt_turns,
    ids_as_said,
    in_list,
    phrases,
    singular,
    word_runs,
)
from sea_pipeline.inputs.wordlists import load_wordlist


@pytest.mark.parametrize(
    ("caption", "runs"),
    [
        ("A red circle, and a Blue square.", [["a", "red", "circle"], ["and", "a", "blue", "square"]]),
        ("the dog's ball; dogs' balls", [["the", "dog", "ball"], ["dogs"], ["balls"]]),
        ("The man\N{RIGHT SINGLE QUOTATION MARK}s t-shirt isn't red", [["the", "man", "t-shirt", "isn't", "red"]]),
        ("A bird's-eye--jack-o'-lantern's 'dog'", [["a", "bird's-eye"], ["jack-o'-lantern"], ["dog"]]),
        ("Rock-\u2019n\u2019-roll at Noë\u2019s -- café", [["rock-'n'-roll", "at", "noë"], ["café"]]),
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
    caught = "I don't, you're, they'd've; it'd, we'll, I'm; ma'am, o'clock, rock'n'roll"
    assert content_words(caught) == ["ma'am", "o'clock", "rock'n'roll"]
    assert phrases(caption) == ["red wine", "glass of red"]
    assert phrases("a cup of tea and cake") == ["cup of tea", "tea and cake"]
    assert phrases("black cat") == ["black cat"]
    assert phrases("black, cat") == []


def test_function_words_are_words() -> None:
    assert {"a", "the", "of", "and", "is", "would", "themselves"} <= FUNCTION_WORDS
    assert not {"articles", "quantities", "auxiliaries", "dog", "red", "man"} & FUNCTION_WORDS
    assert all(word.isalpha() and word.islower() for word in FUNCTION_WORDS)
    assert 150 < len(FUNCTION_WORDS) < 300


@pytest.fixture(scope="module")
def english() -> frozenset[str]:
    return frozenset(load_wordlist("2of12").words)


@pytest.mark.parametrize(
    ("plural", "single"),
    [
        ("dogs", "dog"), ("boxes", "box"), ("horses", "horse"), ("buses", "bus"), ("beaches", "beach"),
        ("berries", "berry"), ("cookies", "cookie"), ("potatoes", "potato"), ("shoes", "shoe"), ("knives", "knives"),
        ("gloves", "glove"), ("firemen", "fireman"), ("traffic lights", None), ("grass", "grass"),
        ("glasses", "glasses"), ("women", "women"), ("snowmen", "snowman"), ("james", None), ("zzzs", None),
    ],
)  # fmt: skip
def test_plurals_in_2of12(plural: str, single: str | None, english: frozenset[str]) -> None:
    assert in_list(plural, english) == single


def test_a_plural_names_its_singular_and_no_possessive() -> None:
    for words in (["woman", "women's", "bird's", "bird"], ["bird", "women’s", "bird's", "woman"]):  # noqa: RUF001
        ids = ids_as_said(words)
        assert [words[ids[in_list(name, ids) or ""]] for name in ("women", "birds")] == ["woman", "bird"]
    assert ids_as_said(["women's"]) == {"women": 0, "women's": 0}


@pytest.mark.slow
def test_captions_name_the_words_of_2of12_as_they_are_spelled() -> None:
    words = load_wordlist("2of12").words
    ids = ids_as_said(words)
    spelled = {word for word in words if "'" in word}
    named = {word for word in spelled if words.index(word) in {ids.get(said) for said in content_words(word)}}
    left = {word for word in spelled - named if not re.search("(n't|'d|'ll|'m|'re|'ve)$", word)}
    heads = ("he", "here", "how", "it", "let", "she", "that", "there", "what", "where", "who")
    function_words = {f"{head}'s" for head in heads}
    also_without_apostrophe = {"'bout", "'cause", "'em", "'neath", "'twill", "'twixt", "master's"}
    assert left == function_words | also_without_apostrophe | {"'n'", "o'", "tho'"}
    assert not any(word.endswith("n't") for word in named)


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

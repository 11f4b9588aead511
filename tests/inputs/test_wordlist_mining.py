"""Word lists that are mined from captions."""

import json
import math
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs import wordlist_mining
from sea_pipeline.inputs.captions import content_spans, is_entry, word_runs
from sea_pipeline.inputs.wordlist_mining import mine
from sea_pipeline.inputs.wordlists import MAX_WORDS, load_wordlist, parse_wordlist
from tests.support.refused import refused
from tests.support.world import Label, draw_folder


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
    "Ukrainian with an apostrophe": "хлопчик кидає м'яч",
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
        row("a jack-o'-lantern beside the pj's"),
        row("unicorns talk", image=None),
    ]
    general = ["a", "dog", "glass", "glasses", "man", "Okapi", "pj's", "table", "teddy"]
    words = mine(write(tmp_path / "x.json", rows), general, MAX_WORDS)
    # dog: 3 and 1 in the plural and 1; the phrase is as frequent as its words; men is the plural of man.
    assert words == (
        "dog", "bear", "teddy", "teddy bear", "man", "Okapi", "glasses", "hats", "jack-o'-lantern", "pj's", "zzyzx",
        "a", "glass", "table"
    )  # fmt: skip
    assert mine(tmp_path / "x.json", general, 5) == words[:5]


def test_records_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [row("a dog"), row("a film") | {"video": "x.mp4"}])
    path.write_bytes(path.read_bytes() + json.dumps(row("a cat X")).encode().replace(b"X", b"\xe9") + b"\n")
    assert mine(path, ["table"], MAX_WORDS) == ("dog", "table")


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

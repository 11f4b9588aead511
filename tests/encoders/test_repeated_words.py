"""Words that an encoder cannot tell apart are counted, and one pair is named."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sea_pipeline import encoders
from sea_pipeline.encoders import load_encoder
from sea_pipeline.encoders.word_cache import repetitions, word_embeddings
from sea_pipeline.inputs.wordlists import WordList
from sea_pipeline.labels import run as label_run
from tests.support.heard import Heard
from tests.support.tiny_clip import CLIP, planted_clip, random_model, save_model
from tests.support.world import draw

AMHARIC = ("ቤት", "ውሻ", "ድመት", "ዛፍ", "መኪና", "ውሃ", "ፀሐይ", "ልጅ", "መጽሐፍ", "ወንበር")


@pytest.mark.slow
def test_label_warns_of_words_that_a_tokenizer_makes_one(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(label_run, "load_encoder", encoders.load_encoder)
    draw(tmp_path / "photos" / "a.png", [["red"]])
    words = tmp_path / "words.txt"
    words.write_text("red\nblue\nRed\nRED\n")
    folder = planted_clip(tmp_path / "clip")
    code, _, stderr = command(
        "label", "--images", tmp_path / "photos", "--encoder", f"open_clip:{folder}", "--wordlist", words, "--top-n", 2,
        "--out", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    said = " ".join(stderr.split())
    assert "warning: 2 of 4 words have the embedding of an earlier word: 'Red' has that of 'red', 'RED' has" in said


@pytest.mark.real
def test_the_packaged_tokenizer_of_another_script() -> None:
    """Its WordPiece has one token for whatever it does not know."""
    heard = Heard()
    word_embeddings(load_encoder("packaged", "cpu"), WordList("amharic", AMHARIC), heard)
    (line,) = heard.warnings
    assert line.startswith("9 of 10 words have the embedding of an earlier word: 'ውሻ' has that of 'ቤት', ")
    assert "; the encoder does not seem to know their script" in line
    assert line.endswith("give an encoder that was trained on their language")


@pytest.mark.slow
def test_a_tokenizer_of_bytes_knows_every_script(tmp_path: Path) -> None:
    heard = Heard()
    folder = save_model(tmp_path / "clip", random_model(CLIP), CLIP)
    word_embeddings(load_encoder(f"open_clip:{folder}", "cpu"), WordList("amharic", AMHARIC), heard)
    assert heard.warnings == []


@pytest.mark.slow
@pytest.mark.parametrize(("repeated", "said"), [(0, False), (2, False), (3, False), (4, True), (2900, True)])
def test_repetitions_are_those_of_a_slow_comparison(repeated: int, said: bool) -> None:
    generator = torch.Generator().manual_seed(repeated)
    rows = F.normalize(torch.randn(3000, 24, generator=generator, dtype=torch.float64), dim=-1)
    where = torch.randperm(3000, generator=generator)
    rows[where[:repeated]] = rows[where[torch.randint(repeated, 3000, (repeated,), generator=generator)]]
    rows += 1e-7 * torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    words = tuple(f"w{number}" for number in range(3000))
    line = repetitions(words, rows.float())
    assert (line is not None) == said
    if line is None:
        return
    near = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") < 1e-4
    count = int(near.tril(-1).any(-1).sum())
    counted, later, earlier = re.match(r"([\d,]+) of 3,000 .*'w(\d+)' has that of 'w(\d+)'", line).groups()  # type: ignore[union-attr]
    assert abs(int(counted.replace(",", "")) - count) <= count // 200  # a pair on the border of two roundings is missed
    assert near[int(later), int(earlier)]
    assert int(earlier) < int(later)
    assert ("script" in line) == (repeated == 2900)


def test_words_of_one_meaning_are_no_other_script() -> None:
    rows = F.normalize(torch.ones(3, 4), dim=-1)
    for word in ("cat", "c" + 9000 * "a"):
        line: Any = repetitions((word, word.title(), word.upper()), rows)
        assert line.startswith("2 of 3 words")
        assert line.endswith("leave them out of the list")
        assert len(line) < 600


def test_words_that_differ_by_more_than_case_are_shown_first() -> None:
    words = ("Hund", "hund", "Katze", "katze", "\u732b", "\u72d7", "Maus", "maus", "Ball", "ball", "See", "see", "Rad")
    rows = F.normalize(torch.eye(len(words)), dim=-1)
    rows[[1, 3, 5, 7, 9, 11]] = rows[[0, 2, 4, 6, 8, 10]]
    line: Any = repetitions(words, rows)
    assert "an earlier word: '\u72d7' has that of '\u732b', 'hund' has that of 'Hund', 'katze'" in line
    assert line.count("has that of") == 5

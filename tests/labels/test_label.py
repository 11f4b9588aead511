"""What the labels mean: drawn pictures whose answer is planted, patch by patch."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from sea_pipeline import LabelStore, open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import ProgressOnly
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.inputs.wordlists import WordList, load_wordlist
from sea_pipeline.labels import stage as label_stage
from sea_pipeline.labels.format import LabelRow, ShardWriter
from sea_pipeline.labels.statistics import image_words, labels_to_json, statistics
from sea_pipeline.storage.parquet import shard_footer
from tests.support.heard import Heard
from tests.support.world import COLOURS, GRID, ColourEncoder, Label, best, draw, draw_folder, similarities


def test_a_wide_picture_is_cropped_to_its_middle(label: Label, tmp_path: Path) -> None:
    """Rows and columns must not be exchanged, and crop_box must say where the grid lies."""
    wide = [["blue", *row, "blue"] for row in GRID]
    draw(tmp_path / "photos" / "wide.png", wide, size=(288, 192))
    tall = [["yellow"] * 4, *GRID, ["yellow"] * 4]
    draw(tmp_path / "photos" / "tall.png", tall, size=(192, 320))
    label(images=str(tmp_path / "photos"))
    store = open_labels(tmp_path / "labels")
    assert best(store["wide.png"]) == GRID
    assert store["wide.png"].crop_box == pytest.approx((1 / 6, 0, 5 / 6, 1))
    assert best(store["tall.png"]) == GRID
    assert store["tall.png"].crop_box == pytest.approx((0, 0.2, 1, 0.8))


def test_scores_are_those_of_equation_6(label: Label, encoder: ColourEncoder, tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "x.png", GRID, size=(48, 48))
    label(images=str(tmp_path / "photos"), top_n=8)
    labels = open_labels(tmp_path / "labels")["x.png"]
    for patch, s in enumerate(similarities(encoder, GRID)):
        there = labels.word_ids[patch] >= 0
        assert sorted(labels.word_ids[patch][there]) == np.flatnonzero(s >= 0).tolist()
        np.testing.assert_allclose(labels.scores[patch][there], np.sort(s[s >= 0])[::-1], atol=6e-4)


def test_the_sign_of_the_encoder_turns_the_ranking_round(label: Label, encoder: ColourEncoder, tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "x.png", GRID)
    encoder.sign = -1
    label(images=str(tmp_path / "photos"))
    opposite = {"red": "cyan", "green": "magenta", "blue": "yellow"}
    found = best(open_labels(tmp_path / "labels")["x.png"])
    assert [found[0][0], found[0][1], found[0][2]] == [opposite[name] for name in GRID[0][:3]]


@pytest.mark.parametrize("blank", [True, False])
def test_labels_without_a_word_are_said(
    blank: bool, label: Label, encoder: ColourEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path / "photos", 2)
    if blank:
        monkeypatch.setattr(encoder, "patches", lambda pixels: torch.zeros(len(pixels), 12, 3))
    label(reporter := Heard(), images=str(tmp_path / "photos"))
    assert sum("no patch of its 2 images has a label" in line for line in reporter.warnings) == blank


def test_the_mean_similarity_of_every_word_is_over_all_patches(
    label: Label, encoder: ColourEncoder, tmp_path: Path
) -> None:
    grids = [GRID, [row[::-1] for row in GRID], [["red"] * 4] * 3]
    for number, cells in enumerate(grids):
        draw(tmp_path / "photos" / f"{number}.png", cells, size=(48, 48))
    run = label(images=str(tmp_path / "photos"), shard_size=2)
    expected = np.concatenate([similarities(encoder, cells) for cells in grids]).mean(0)
    np.testing.assert_allclose(open_labels(tmp_path / "labels").mean_similarity(), expected, atol=1e-6)
    assert [shard_footer(run.ledger.shard_path(shard))["patches"] for shard in range(2)] == [24, 12]


def test_an_image_whose_embedding_is_not_finite_is_quarantined(
    label: Label, encoder: ColourEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path / "photos", 6)
    plain = encoder.patches

    def broken(pixels: torch.Tensor) -> torch.Tensor:
        vectors = plain(pixels)
        vectors[1, 5, 0] = torch.nan
        return vectors

    monkeypatch.setattr(encoder, "patches", broken)
    label(images=str(tmp_path / "photos"), shard_size=6)
    store = open_labels(tmp_path / "labels")
    (bad,) = store.quarantine()
    assert (bad["image_id"], bad["stage"], bad["error"]) == ("003.png", "encode", "NotFinite")
    assert len(store) == 5
    assert np.isfinite(store.mean_similarity()).all()


def test_words_are_embedded_once_for_a_list(label: Label, encoder: ColourEncoder, tmp_path: Path) -> None:
    draw_folder(tmp_path / "photos", 1)
    for out in ("one", "two"):
        label(images=str(tmp_path / "photos"), out=tmp_path / out)
    assert encoder.embedded_words == 8
    (cached,) = (tmp_path / "cache" / "words").glob("*.npz")
    whole = cached.read_bytes()
    for number, damaged in enumerate((b"", whole[:-30], whole[:200] + b"\1" + whole[201:], b"PK" + whole)):
        cached.write_bytes(damaged)
        label(images=str(tmp_path / "photos"), out=tmp_path / f"again{number}")
    assert encoder.embedded_words == 8 * 5


def test_embeddings_that_changed_places_are_made_again(encoder: ColourEncoder, tmp_path: Path) -> None:
    """Those of earlier versions do not say what they were made for."""
    lists = [WordList("list", words) for words in (("red", "blue"), ("blue", "red"))]
    plain = [word_embeddings(encoder, words) for words in lists]
    one, other = (tmp_path / "cache" / "words").glob("*.npz")
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    for _ in range(2):
        assert all(torch.equal(word_embeddings(encoder, *each), made) for *each, made in zip(lists, plain, strict=True))
    assert encoder.embedded_words == 2 * 4
    np.savez(one, embeddings=np.load(one)["embeddings"])
    assert all(torch.equal(word_embeddings(encoder, *each), made) for *each, made in zip(lists, plain, strict=True))
    assert encoder.embedded_words == 2 * 4


def test_embedding_words_is_said_before_unless_the_cache_has_them(
    encoder: ColourEncoder, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    monkeypatch.setattr(encoder, "words", lambda *given: heard.message("now") or ColourEncoder.words(encoder, *given))
    for _ in range(2):
        word_embeddings(encoder, load_wordlist(str(words)), heard)
    assert heard.lines == [f"embedding 8 words once; kept in {tmp_path / 'cache' / 'words'}", "now"]
    word_embeddings(encoder, WordList("other", ("red", "blue")), ProgressOnly(heard))
    assert heard.lines[2:] == [f"embedding 2 words once; kept in {tmp_path / 'cache' / 'words'}", "now"]


def test_a_batch_without_a_finite_image(
    label: Label, encoder: ColourEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path / "photos", 5)
    plain = encoder.patches
    monkeypatch.setattr(encoder, "patches", lambda pixels: plain(pixels) / (0 if len(pixels) == 1 else 1))
    run = label(images=str(tmp_path / "photos"))
    assert (run.report.images, run.report.bad, run.report.failed) == (4, 1, {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda vectors: 2 * vectors, "expected vectors of unit length; found 2"),
        (lambda vectors: vectors[:, :-1], r"12 patches, 3 x 4, and width 3; found torch.float32 and \(11, 3\)"),
        (lambda vectors: vectors.double(), "expected float32 vectors"),
    ],
)
def test_an_encoder_that_gives_other_than_it_says_stops_the_run(
    label: Label, encoder: ColourEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    draw_folder(tmp_path / "photos", 5)
    plain = encoder.patches
    monkeypatch.setattr(encoder, "patches", lambda pixels: change(plain(pixels)))
    with pytest.raises(UserError, match=f"--encoder packaged: .*{said}"):
        label(images=str(tmp_path / "photos"))


def test_a_word_without_a_vector_is_refused_by_name(
    label: Label, encoder: ColourEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path / "photos", 1)
    plain = encoder.words

    def broken(words: Sequence[str], advance: Callable[[int], None]) -> torch.Tensor:
        vectors = plain(words, advance)
        vectors[2] = torch.nan
        return vectors

    monkeypatch.setattr(encoder, "words", broken)
    with pytest.raises(UserError, match="no unit vector for the word 'blue'"):
        label(images=str(tmp_path / "photos"))


def test_a_cache_that_cannot_be_written_says_so_before_the_words_are_embedded(
    label: Label, encoder: ColourEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path / "photos", 1)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEA_PIPELINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set SEA_PIPELINE_CACHE"):
        label(images=str(tmp_path / "photos"))
    assert encoder.embedded_words == 0


def test_a_batch_is_encoded_while_the_one_before_is_written(
    label: Label, encoder: ColourEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path / "photos", 4)
    second, batches = Event(), count()
    encode, add = encoder.patches, ShardWriter.add

    def patches(pixels: torch.Tensor) -> torch.Tensor:
        assert len(pixels) == 2
        if next(batches) == 1:
            second.set()
        return encode(pixels)

    def written(writer: ShardWriter, row: LabelRow) -> None:
        assert second.wait(100), "the second batch waits for the first to be written"
        add(writer, row)

    monkeypatch.setitem(label_stage.BATCH_SIZES, "cpu", 2)
    monkeypatch.setattr(encoder, "patches", patches)
    monkeypatch.setattr(ShardWriter, "add", written)
    run = label(images=str(tmp_path / "photos"), shard_size=4)
    assert run.report.failed == {}
    assert len(open_labels(tmp_path / "labels")) == 4
    assert next(batches) == 2  # none was encoded again


@pytest.fixture
def store(label: Label, tmp_path: Path) -> LabelStore:
    draw(tmp_path / "photos" / "a" / "x.png", GRID, size=(48, 48))
    label(images=str(tmp_path / "photos"), top_n=1)
    return open_labels(tmp_path / "labels")


def test_counts_of_known_labels(store: LabelStore, encoder: ColourEncoder) -> None:
    stats = statistics(store)
    cells = [name for row in GRID for name in row]
    assert (stats.images, stats.patches, stats.labelled_patches, stats.labels) == (1, 12, 12, 12)
    assert stats.word_uses.tolist() == stats.best_uses.tolist() == [cells.count(name) for name in COLOURS]
    assert (stats.words_used, stats.share_used) == (8, 1.0)
    assert stats.score_bins.tolist() == [0] * 19 + [12]
    assert stats.share_below_zero == (similarities(encoder, GRID).mean(0) < 0).mean()
    assert stats.to_json(store.words)["most_frequent"][0] == {"word": "red", "labels": 3, "best": 3}


def test_the_words_of_an_image_have_the_highest_sums(store: LabelStore) -> None:
    words = [(store.words[word], round(total, 2)) for word, total in image_words(store["a/x.png"], most=3)]
    assert words == [("red", 3.0), ("green", 2.0), ("brown", 2.0)]
    assert labels_to_json("a/x.png", store["a/x.png"], store.words)["words"][:4] == [[name] for name in GRID[0]]


def test_a_store_is_a_collection_of_ids(store: LabelStore) -> None:
    assert list(store) == ["a/x.png"]
    assert list(store.quarantine()) == []
    with pytest.raises(KeyError, match="0 is none of the 1 images"):
        store[0]  # type: ignore[index]

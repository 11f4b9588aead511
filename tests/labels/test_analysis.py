"""Numbers of labels whose every cell is known."""

from pathlib import Path

import pytest

from sea_pipeline import LabelStore, open_labels
from sea_pipeline.labels.statistics import image_words, labels_to_json, statistics
from tests.support.world import COLOURS, GRID, ColourEncoder, Label, draw, similarities


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

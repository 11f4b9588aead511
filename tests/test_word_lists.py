"""`tests.bench.word_lists`: what it counts, on planted colours, one list beside another."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sea_pipeline import open_labels
from tests.bench import word_lists
from tests.support.world import COLOURS, draw

PHOTOS = ["red", "green", "blue", "red", "green", "blue"]


@pytest.fixture
def folders(label: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """Photos of one colour each, their captions, and two folders of their labels; `blue sky` looks like blue."""
    monkeypatch.setitem(COLOURS, "blue sky", COLOURS["blue"])
    monkeypatch.setitem(COLOURS, "greens", COLOURS["green"])
    rows = []
    for number, colour in enumerate(PHOTOS):
        draw(tmp_path / "photos" / f"{number}.png", [[colour] * 2] * 2)
        turns = [{"from": "gpt", "value": f"the {colour} unicorns"}, {"from": "gpt", "value": f"{colour}s"}]
        rows.append({"image": f"{number}.png", "conversations": turns})
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    for name, listed in (("one", "red\ngreen\n"), ("two", "red\nblue sky\ngreens\n")):
        (tmp_path / f"{name}.txt").write_text(listed)
        label(images=str(tmp_path / "photos"), wordlist=str(tmp_path / f"{name}.txt"), top_n=1, out=tmp_path / name)
    return tmp_path / "captions.json", tmp_path / "one", tmp_path / "two"


def test_every_word_of_the_captions_counts_for_every_list(folders: tuple[Path, Path, Path]) -> None:
    captions, *labels = folders
    stores = [open_labels(folder) for folder in labels]
    images, spoken = word_lists.captioned(captions, stores)
    assert images == [f"{number}.png" for number in range(6)]
    one, two = (word_lists.row(store, images, spoken, phrases=False) for store in stores)
    # of each photo: its colour, the plural, unicorns. `one` has red, reds, green, greens; `two` red, reds, greens
    assert one.own == pytest.approx((4 * 2 + 0) / 18)
    assert two.own == pytest.approx((2 * 2 + 2 * 1) / 18)
    assert (one.other, two.other) == (0, 0)
    assert one.lift.hit == pytest.approx(one.own * 18 / 12)  # unicorns, in all captions, do not count


def test_phrases_stand_for_their_words(folders: tuple[Path, Path, Path]) -> None:
    captions, *labels = folders
    stores = [open_labels(folder) for folder in labels]
    images, spoken = word_lists.captioned(captions, stores)
    one, two = (word_lists.row(store, images, spoken, phrases=True) for store in stores)
    assert one == word_lists.row(stores[0], images, spoken, phrases=False)
    assert two.own == pytest.approx((2 * 2 + 2 * 1 + 2 * 1) / 18)


def test_the_table(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["word_lists", *map(str, folders)])
    monkeypatch.setenv("COLUMNS", "300")
    word_lists.main()
    said = capsys.readouterr().out
    assert "6 photos" in said
    assert "44.4%" in said

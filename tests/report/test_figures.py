"""Figures: what is drawn where, in formats that keep text as text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import WHOLE
from sea_pipeline.labels.store import Labels, open_labels
from sea_pipeline.report.figures import Panel, labels_figure, patches_figure, photo_of, save_figure
from tests.support.world import Label, draw, draw_folder

GRID = [["red", "red", "green", "green"], ["blue"] * 4, ["brown", "brown", "grey", "grey"]]
WHITE = Image.new("RGB", (64, 48), "white")


def texts(figure: Any) -> dict[tuple[float, float], str]:
    """What is written at which place, column and row."""
    return {text.get_position(): text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()}


def boxes(figure: Any) -> list[tuple[int, int]]:
    """The patches that are tinted or boxed, row and column."""
    return [(int(patch.get_y()), int(patch.get_x())) for axes in figure.axes for patch in axes.patches]


def test_words_stand_on_their_patches_and_one_word_has_one_colour() -> None:
    labels = Labels(np.array([[0], [0], [1], [-1]], np.int32), np.ones((4, 1), np.float32), (1, 4), (0, 0, 1, 1))
    figure = labels_figure(WHITE, labels, ("cat", "dog"))
    assert texts(figure) == {(0.5, 0.5): "cat", (1.5, 0.5): "cat", (2.5, 0.5): "dog"}
    assert boxes(figure) == [(0, 0), (0, 1), (0, 2)]
    colours = [patch.get_facecolor() for patch in figure.axes[0].patches]
    assert colours[0] == colours[1] != colours[2]


def test_hits_are_boxed_and_bold_and_misses_are_neither() -> None:
    panel = Panel("t", ["a", "b", "c", ""], ["hit", "miss", "none", "miss"])
    figure = patches_figure(WHITE, (0, 0, 1, 1), (2, 2), [panel, panel], 2)
    assert boxes(figure) == [(0, 0), (0, 0)]
    weights = [text.get_weight() for text in figure.axes[0].texts]
    assert weights == ["bold", "normal", "normal", "normal"]


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_figure_is_whole_and_its_text_is_text(tmp_path: Path, suffix: str) -> None:
    figure = patches_figure(WHITE, (0, 0, 1, 1), (1, 2), [Panel("$x_1$ and <b>", ["zebra $1", "a\nb"])], 1)
    path = tmp_path / "made" / f"figure{suffix}"
    save_figure(figure, path)
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]
    if suffix == ".svg":
        assert "zebra $1" in path.read_text()
        assert "&lt;b&gt;" in path.read_text()
    if suffix == ".pdf":
        assert path.read_bytes().startswith(b"%PDF")
        first = path.read_bytes()
        save_figure(figure, path)
        assert path.read_bytes() == first
    if suffix == ".png":
        with Image.open(path) as opened:
            assert opened.width > 100


def test_the_drawn_part_is_the_crop_box() -> None:
    photo = Image.new("RGB", (100, 50), "red")
    photo.paste("blue", (50, 0, 100, 50))
    figure = patches_figure(photo, (0.5, 0, 1, 1), (1, 1), [Panel("", [""])], 1)
    shown = figure.axes[0].images[0].get_array()
    assert shown.reshape(-1, 3).max(0).tolist() == [0, 0, 255]


def test_inspect_saves_the_photo_and_figure_6(command: Any, label: Label, tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "x.png", GRID, size=(48, 48))
    labels = label(images=str(tmp_path / "photos")).ledger.root
    assert command("inspect", labels, "x.png", "--save", tmp_path / "x.svg")[0] == 0
    assert (tmp_path / "x.svg").read_text().count(">blue<") == 4
    assert command("inspect", labels, "--save", tmp_path / "six.pdf", "--json")[0] == 0
    assert (tmp_path / "six.pdf").is_file()
    code, _, stderr = command("inspect", labels, "--save", tmp_path / "six.docx")
    assert code == 1
    assert "ends in .png, .pdf, .svg; found '.docx'" in stderr.replace("\n", " ")


def test_a_long_title_is_folded_and_what_the_font_lacks_is_told(tmp_path: Path) -> None:
    title = " · ".join(["mackintosh"] * 9)
    figure = patches_figure(Image.new("RGB", (80, 60)), WHOLE, (4, 4), [Panel(title, ["a", "犬", "🐶", ""] * 4)], 1)
    assert save_figure(figure, tmp_path / "a.png") == "犬🐶"
    (axes,) = figure.axes
    assert axes.get_title(loc="left").split() == title.split()
    assert axes._left_title.get_window_extent().x1 <= figure.bbox.x1


def test_a_photo_that_is_gone_is_named(label: Label, tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "photos", 1)
    store = open_labels(label(images=str(folder)).ledger.root)
    assert photo_of(store, "000.png").size == (48, 48)
    (folder / "000.png").unlink()
    with pytest.raises(UserError, match=r"000\.png: cannot be drawn: No such file"):
        photo_of(store, "000.png")

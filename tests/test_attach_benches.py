"""What the benchmarks of `attach` train on and say, without their models."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.bench import attach_shapes, families
from tests.bench.attach_shapes import DESCRIBE, Drawing, World, batches, caption, question
from tests.support.shape_clip import Thing, scene
from tests.trainer.attach.worlds import Pictures, draw_pictures


@pytest.fixture(scope="module")
def world() -> World:
    random = np.random.default_rng(0)
    drawings = [Drawing(f"{number}.png", scene(random)) for number in range(64)]
    return World(Path(), drawings, drawings, None)  # type: ignore[arg-type]


def test_answers_are_true_and_as_often_yes_as_no(world: World) -> None:
    things = {drawing.name: {f"a {one.colour} {one.shape}" for one in drawing.things} for drawing in world.train}
    said = []
    for names, texts in batches(world, 8, 16, seed=1):
        for name, text in zip(names, texts, strict=True):
            if text.asked == DESCRIBE:
                assert set(text.answer.split(" and ")) == things[name]
            else:
                there = text.asked.removeprefix("Is there ").rstrip("?") in things[name]
                assert text.answer == ("Yes" if there else "No")
                said.append(text.answer)
    assert len(said) == 8 * 8
    assert said.count("Yes") == said.count("No")


def test_rows_differ_in_labels_alone(world: World) -> None:
    assert list(batches(world, 3, 16, seed=1)) == list(batches(world, 3, 16, seed=1))
    assert list(batches(world, 3, 16, seed=1)) != list(batches(world, 3, 16, seed=2))


def test_a_question_about_nothing_there_names_no_thing_of_the_picture() -> None:
    drawing = Drawing("a.png", [Thing("red", "circle", 16, 16, 12)])
    asked = {question(drawing, np.random.default_rng(seed), yes=False).asked for seed in range(200)}
    assert len(asked) == 15
    assert "Is there a red circle?" not in asked
    assert caption(drawing).answer == "a red circle"


def test_the_table_has_means_and_both_errors(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        {"row": "attach", "seed": seed, "steps": 2, "lm_loss": 1.0 + seed, "lm_loss_se": 0.25, "gap": 0.5}
        for seed in (0, 1)
    ]
    Console(width=200).print(attach_shapes.table_of(runs))
    out = capsys.readouterr().out
    assert "1.500 ± 0.250 (± 0.707)" in out
    assert "shuffled" not in out


@pytest.mark.slow
def test_the_table_of_families_is_what_their_tests_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "SHAPES", ((160, 320),))
    pictures: Pictures = draw_pictures(tmp_path / "pictures")
    row = families.row_of("qwen2_5_vl", pictures, tmp_path / "planted")
    assert row.grids == ["5x11", "10x5"]
    assert row.loss > 0.5
    assert row.loss_off < 2e-5
    assert 0 < row.gradient_off < 2e-4
    assert row.hits == row.cells > 20

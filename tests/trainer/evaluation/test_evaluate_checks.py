"""Mistakes stop an evaluation before its first batch, rows left out are told, and a run is measured as by itself."""

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.pixels import read_image
from tests.support.analysis_models import Make, evaluate_settings, measured, record, write
from tests.support.heard import Heard
from tests.support.tiny_runs import World, tiny_recipe
from trainer.evaluation import evaluator
from trainer.evaluation.answers import Question
from trainer.evaluation.checks import check_evaluate
from trainer.evaluation.evaluator import Evaluator, evaluating
from trainer.evaluation.own_run import own_run
from trainer.evaluation.questions import Asker
from trainer.evaluation.run import EvaluateSettings, evaluate_model
from trainer.training.run import train

ASKED = [{"image": "00.png", "question": "Red?", "label": "yes"}, {"image": "01.png", "question": "Q?", "answers": [2]}]


@pytest.fixture
def _no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that gets as far as a batch fails."""

    monkeypatch.setattr(Evaluator, "_metrics", Mock(side_effect=AssertionError("a batch was measured")))


@pytest.mark.parametrize(
    ("asked", "template", "said"),
    [
        ("[", "own", "it cannot be read"),
        ([{"image": "00.png", "question": "Red?"}], "own", "expected a list of objects"),
        ([*ASKED, {**ASKED[0], "image": "x/gone.png"}], "own", r"1 of 3 are not there, such as 'x/gone\.png'; name"),
        ([{**ASKED[0], "image": "../../x.png"}], "own", "1 of 1 are not there"),
        (ASKED, "plain", "cannot be asked with the template plain, .*; take --template own or vicuna_v1"),
        (ASKED, "own", None),
    ],
)
def test_questions_are_read_and_their_photos_looked_for_first(
    asked: Any, template: str, said: str | None, tiny: World, tmp_path: Path
) -> None:
    (tmp_path / "q.json").write_text(asked if isinstance(asked, str) else json.dumps(asked))
    with pytest.raises(UserError, match=said) if said else nullcontext():
        check_evaluate(evaluate_settings(tiny, questions=tmp_path / "q.json", template=template))


@pytest.mark.usefixtures("_no_batch")
def test_the_labels_encoder_is_loaded_before_the_first_batch(tiny: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "load_encoder", Mock(side_effect=UserError("no such encoder")))
    with pytest.raises(UserError, match="no such encoder"):
        measured(tiny, labels=tiny.labels)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_batch")
def test_what_analyses_need_is_looked_for_before_the_first_batch(tiny: World, tmp_path: Path) -> None:
    text = write(tmp_path / "text.json", [record("text", [], "Which colour?", "red")])
    wordless = write(tmp_path / "wordless.json", [record("a", ["gone.png"], "What?", "It is the one.")])
    for more, said in (
        ({"layers": True, "data": text}, "found none in 1 samples"),
        ({"replace": True, "data": text}, "found none in 1 samples"),
        ({"lens": "contextual", "lens_data": str(wordless)}, "found no content word in 1 texts"),
        ({"lens": "contextual", "lens_data": str(text), "data": text}, "found no photo with one in 1 samples"),
    ):
        with pytest.raises(UserError, match=said):
            measured(tiny, **more)


def test_a_photo_that_a_question_cannot_read_is_one_sentence(tiny: World, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps(ASKED))
    shutil.copy(tiny.data.parent / "images" / "00.png", tmp_path / "00.png")
    (tmp_path / "01.png").write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        measured(tiny, questions=tmp_path / "q.json", question_root=tmp_path)
    assert "expected '01.png' below" in str(caught.value)
    assert "('" not in str(caught.value), "not an exception's arguments"
    assert "mend it, or name the folder of the photos with --question-root" in str(caught.value)


def test_questions_are_tokenised_a_batch_at_a_time(ready: Make, tiny: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made, images = ready(), tiny.data.parent / "images"
    tokenised = Mock(side_effect=Asker.prompts)
    monkeypatch.setattr(Asker, "prompts", lambda asker, questions: tokenised(asker, questions))
    given = [Question(f"{number:02d}.png", f"Is it {number}?", ("yes",), True) for number in range(7)]
    with evaluating(made.model):
        Asker(made.model, made.folder, lambda name: read_image(images / name).image, batch_size=3)(given)
    assert [len(call.args[1]) for call in tokenised.call_args_list] == [3, 3, 1]


def damaged(tiny: World, tmp_path: Path) -> EvaluateSettings:
    """Five rows: a photo that is cut short, one that is gone, a question without an answer, and two good ones."""
    shutil.copytree(tiny.data.parent / "images", tmp_path / "images")
    cut = tmp_path / "images" / "00.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    (tmp_path / "images" / "01.png").unlink()
    rows = [record(f"r{number}", [f"{number:02d}.png"], "What?", "a red patch") for number in range(4)]
    rows.append({"id": "turns", "image": "04.png", "conversations": [{"from": "human", "value": "What?"}]})
    data = write(tmp_path / "data.json", rows)
    return evaluate_settings(tiny, data=data, image_root=tmp_path / "images", bad_rows="leave_out")


def test_rows_that_are_left_out_are_told_unreadable_photos_too(tiny: World, tmp_path: Path) -> None:
    asked, heard = damaged(tiny, tmp_path), Heard()
    found = evaluate_model(asked, reporter=heard)
    (said,) = heard.warnings
    assert "data.json: 3 of 5 rows are left out: " in said
    for kind in ("image files that are there", "images that can be read", "turns"):
        assert f"1 x expected {kind}" in said
    good = write(tmp_path / "good.json", json.loads((tmp_path / "data.json").read_text())[2:4])
    assert found == measured(tiny, data=good)
    assert torch.tensor(found["lm_loss"]).isfinite()


def test_an_unreadable_photo_stops_it_with_advice_that_works(tiny: World, tmp_path: Path) -> None:
    rows = json.loads(Path(damaged(tiny, tmp_path).data).read_text())
    data = write(tmp_path / "two.json", [rows[0], rows[2]])
    with pytest.raises(UserError, match=r"id 'r0': expected images that can be read; found '00.png'") as said:
        measured(tiny, data=data, image_root=tmp_path / "images")
    assert "--resume" not in str(said.value)
    measured(tiny, data=data, image_root=tmp_path / "images", bad_rows="leave_out")


LONGEST = 200
"""Tokens of a row. Those of the tiny world have fewer."""


@pytest.mark.slow
def test_a_run_is_measured_afterwards_as_by_itself(tiny: World, tmp_path: Path) -> None:
    held_out = json.loads(tiny.held_out.read_text())
    held_out[0]["conversations"][1]["value"] += " of red and of blue" * 60
    data = write(tmp_path / "held.json", held_out)
    recipe = tiny_recipe(
        tiny,
        data={"evaluate": str(data), "max_length": LONGEST},
        loss={"sea": {"word_prefix": "none"}},
        training_arguments={"max_steps": 1},
    )
    run = train(recipe, tmp_path / "run")
    heard = Heard()
    found = measured(tiny, heard, model=run.model, data=data, labels=tiny.labels)
    assert found == pytest.approx(run.summary["end"], rel=1e-5)
    assert any("loss.sea.word_prefix: none" in line for line in heard.lines)
    cut, by_chance = heard.warnings
    assert by_chance.startswith("label_hit@10: ")
    assert f"1 of 3 rows are longer than data.max_length {LONGEST} of the model's run" in cut
    shutil.copytree(run.model, tmp_path / "elsewhere" / "model")
    alone = Heard()
    other = measured(tiny, alone, model=tmp_path / "elsewhere" / "model", data=data, labels=tiny.labels)
    assert alone.lines == [by_chance]
    assert other["trained_tokens"] > found["trained_tokens"]
    assert other["gap"] != pytest.approx(found["gap"], rel=1e-3), "words are spelled otherwise"
    late = record("late", ["00.png"], "red or blue " * LONGEST, "a red patch")
    late_data = write(tmp_path / "late.json", [late, *held_out[1:]])
    limit = f"within data.max_length {LONGEST} of the model's run ({run.out / 'run.json'})"
    with pytest.raises(UserError, match=rf"{re.escape(limit)}; found \d+ .* it; shorten or remove the sample"):
        measured(tiny, model=run.model, data=late_data)
    left = Heard()
    measured(tiny, left, model=run.model, data=late_data, bad_rows="leave_out")
    assert left.warnings == [f"{late_data}: 1 of 3 rows are left out: 1 x expected an answer {limit}"]


@pytest.mark.slow
def test_a_run_is_measured_with_its_own_template(tiny: World, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tiny,
        data={"evaluate": str(tiny.held_out), "template": "vicuna_v1"},
        loss={"sea": {"weight": 0}},
        training_arguments={"max_steps": 1},
    )
    run = train(recipe, tmp_path / "run")
    heard = Heard()
    found = measured(tiny, heard, model=run.model, data=tiny.held_out)
    assert found["lm_loss"] == pytest.approx(run.summary["end"]["lm_loss"], rel=1e-5)
    assert any("data.template: vicuna_v1" in line for line in heard.lines)
    other = measured(tiny, model=run.model, data=tiny.held_out, template="plain")
    assert other["lm_loss"] != pytest.approx(found["lm_loss"], rel=1e-3)


def test_a_long_row_is_measured_to_its_end(tiny: World, tmp_path: Path) -> None:
    rows = [record("long", ["00.png"], "What?", "red " * 2200)]
    heard = Heard()
    found = measured(tiny, heard, data=write(tmp_path / "long.json", rows))
    assert found["trained_tokens"] > 2200
    assert heard.warnings == []


def test_a_record_that_cannot_be_read_is_told(tiny: World, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    heard = Heard()
    assert own_run(tmp_path / "model", heard).word_prefix == "space"
    (said,) = heard.warnings
    assert "run.json: cannot be read as JSON" in said
    assert "measured as one without a run" in said

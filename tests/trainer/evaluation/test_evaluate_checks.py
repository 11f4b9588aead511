"""Mistakes that are known before an evaluation stop it before its first batch, and rows that are left out are told."""

import json
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
from tests.support.tiny_runs import World
from trainer.evaluation import evaluator
from trainer.evaluation.answers import Question
from trainer.evaluation.checks import check_evaluate
from trainer.evaluation.evaluator import Evaluator, evaluating
from trainer.evaluation.questions import Asker
from trainer.evaluation.run import EvaluateSettings, evaluate_model

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

"""`evaluate` on a run measures as the run does, and on a model without a run it cuts nothing."""

import json
import re
import shutil
from pathlib import Path

import pytest

from sea_pipeline.core.errors import UserError
from tests.support.analysis_models import measured, record, write
from tests.support.heard import Heard
from tests.support.tiny_runs import World, tiny_recipe
from trainer.evaluation.own_run import own_run
from trainer.training.run import train

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
    (cut,) = heard.warnings
    assert f"1 of 3 rows are longer than data.max_length {LONGEST} of the model's run" in cut
    shutil.copytree(run.model, tmp_path / "elsewhere" / "model")
    alone = Heard()
    other = measured(tiny, alone, model=tmp_path / "elsewhere" / "model", data=data, labels=tiny.labels)
    assert alone.lines == []
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

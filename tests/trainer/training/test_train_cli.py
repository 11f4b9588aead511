"""The commands of training, as typed, on the tiny world."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.tiny_models import tiny_llm, tiny_vision
from tests.support.tiny_runs import World, tiny_recipe
from trainer.model import fsdp


@pytest.fixture
def recipe(tiny: World, tmp_path: Path) -> Path:
    """A recipe of two stages: alignment without the LLM's layers, then L_lm."""
    base = tiny_recipe(tiny).model_dump(mode="json")
    base["data"] |= {"evaluate": str(tiny.held_out)}
    base["training_arguments"] = {"max_steps": 2, "per_device_train_batch_size": 4}
    base["stages"] = {"align": {"loss": {"lm": 0}}, "language": {"loss": {"sea": {"weight": "auto"}}}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(base, sort_keys=False))
    return path


@pytest.mark.slow
def test_train_runs_the_stages_and_goes_on(
    command: Any, tiny: World, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    code, stdout, stderr = command("train", recipe, "--out", out)
    assert code == 0, stderr
    assert "label_hit@10" in stdout
    assert "lm_loss" in stdout
    assert "frozen" in stderr
    align, language = (json.loads((out / name / "summary.json").read_text()) for name in ("align", "language"))
    assert "lm_loss" not in align["end"]
    assert language["start"]["label_hit@10"] == pytest.approx(align["end"]["label_hit@10"])
    code, stdout, stderr = command("train", recipe, "--out", out, "--resume", "--json")
    assert code == 0
    assert stderr.count("this run is finished") == 2
    assert json.loads(stdout) == {
        "runs": [
            {"stage": name, "folder": str(out / name), "model": str(out / name / "model"), "summary": summary}
            for name, summary in (("align", align), ("language", language))
        ]
    }
    monkeypatch.setattr(fsdp, "is_first_process", lambda: False)  # as it is for the others of several processes
    assert command("train", recipe, "--out", out, "--json")[:2] == (0, "")


def test_bad_recipes_are_one_line(command: Any, recipe: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (["--set", "loss.sea.weigth=3"], "loss.sea.weigth: there is no such key"),
        (["--set", "training_arguments.max_step=3"], "max_step"),
        (["--set", "model=nowhere"], "nowhere: there is no such folder; expected a model of sea-pipeline init"),
        (["--resume"], "expected a run to go on with; found none"),
    ):
        code, _, stderr = command("train", recipe, "--out", tmp_path / "other", *arguments)
        assert code == 1
        assert said in stderr.replace("\n", " ")
        assert "Traceback" not in stderr


@pytest.mark.slow
def test_init_and_evaluate(command: Any, tiny: World, tmp_path: Path) -> None:
    vision, llm = tiny_vision(tmp_path / "vision"), tiny_llm(tmp_path / "llm")
    code, stdout, stderr = command("init", "--vision", vision, "--llm", llm, "--out", tmp_path / "model")
    assert code == 0, stderr
    assert "4 x 4 visual tokens an image" in stdout
    code, said, _ = command("init", "--vision", vision, "--llm", llm, "--out", tmp_path / "again", "--json")
    made = json.loads(said)
    assert (code, made["folder"], made["grid"]) == (0, str(tmp_path / "again"), [4, 4])
    assert f"{made['vocabulary']:,} tokens of the LLM" in stdout
    arguments = ["--data", tiny.data, "--image-root", tiny.data.parent / "images", "--json"]
    code, stdout, stderr = command("evaluate", tmp_path / "model", *arguments)
    assert code == 0, stderr
    assert {"lm_loss", "right_photo_gain", "right_photo_gain_se", "tacs"} < set(json.loads(stdout))
    assert not {"label_hit@1", "gap", "meaningful"} & set(json.loads(stdout))

"""Stages in their order: the command, and what is wrong with a later one, said before the first one trains."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sea_pipeline.core.errors import UserError
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.run_files import stage_folders
from tests.support.heard import Heard
from tests.support.refused import refused
from tests.support.tiny_runs import World, tiny_recipe
from trainer.export.checks import is_run
from trainer.model import fsdp
from trainer.model.llava_folder import check_llava_folder
from trainer.recipes.recipe import Recipe
from trainer.training import run as train_run
from trainer.training.run import train_stages


def stages(tiny: World, **later: Any) -> dict[str, Recipe]:
    """Alignment without the LLM's layers, then L_lm; one step each."""
    short = {"max_steps": 1, "save_strategy": "no"}
    arguments = short | later.pop("training_arguments", {})
    first = tiny_recipe(tiny, loss={"lm": 0}, training_arguments=short)
    return {"align": first, "language": tiny_recipe(tiny, training_arguments=arguments, **later)}


def other_data(tiny: World, **changes: Any) -> None:
    """Writes its data with another first record, named after what is changed."""
    records = json.loads(tiny.data.read_text())
    records[0] |= changes
    Path(f"{next(iter(changes))}.json").write_text(json.dumps(records))


NO_TRAINING = {"learning_rates": {"projector": None}, "loss": {"sea": {"weight": 0}}}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no data": ({"data": {"train": "nowhere.json"}}, "nowhere.json: expected LLaVA's conversations"),
    "no image": ({"data": {"train": "image.json"}}, "expected image files that are there; found no 'gone.png'"),
    "bad row": ({"data": {"train": "conversations.json"}}, "conversations.json: entry 1, id 's0': expected"),
    "no root": ({"data": {"image_root": "nowhere"}}, "image root nowhere: expected a folder"),
    "no file to evaluate": ({"data": {"evaluate": "gone.json"}}, "gone.json: expected LLaVA's conversations"),
    "held out": ({"data": {"held_out": 500}}, "held_out: expected 0 or more"),
    "nothing held out": ({"evaluate_every": 1}, "there are no held-out samples; set data.held_out or data.evaluate"),
    "fsdp": ({"training_arguments": {"fsdp": True}}, "fsdp: it cuts weights over processes; found one"),
    "labels": ({"data": {"train": "moved.json", "image_root": "."}}, "holds none of the"),
    "no labels": ({"labels": {"path": "labels_of_nobody"}}, "labels_of_nobody"),
    "no rate": (NO_TRAINING, "learning_rates: projector, llm and vision are all null"),
    "crops": ({"labels": {"crops": 2}}, "expected 2 labelled crops of each image, found 0; label with --crops 2"),
}
"""What differs in the second stage, and what is said of it."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG)
def test_a_later_stage_is_checked_first(
    kind: str, tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other_data(tiny, image="gone.png")
    other_data(tiny, conversations=[])
    moved = [record | {"image": "sub/01.png"} for record in json.loads(tiny.data.read_text())]
    Path("moved.json").write_text(json.dumps(moved))
    Path("sub").mkdir()
    shutil.copy(tiny.data.parent / "images" / "01.png", "sub")
    monkeypatch.setattr(train_run, "_Training", None)
    changes, said = WRONG[kind]
    with refused(said, start="stage language: "):
        train_stages(stages(tiny, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_finished_stage_is_not_checked(tiny: World, tmp_path: Path) -> None:
    recipes = stages(tiny)
    train_stages(recipes, tmp_path / "out")
    os.utime(tmp_path / "out" / "language" / "run.json", (0, 0))  # as a copy may have it
    assert stage_folders(tmp_path / "out") == ([tmp_path / "out" / name for name in recipes], True)
    with pytest.raises(UserError, match=r"^stage later: nowhere"):
        later = tiny_recipe(tiny, data={"train": "nowhere.json"})
        train_stages({**recipes, "last": recipes["language"], "later": later}, tmp_path / "out")


@pytest.mark.slow
def test_the_model_of_an_earlier_stage_is_put_back(tiny: World, tmp_path: Path) -> None:
    recipes, out = stages(tiny), tmp_path / "out"
    train_stages(recipes, out)
    model = out / "align" / "model"
    held = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    with refused("choose another --out", start=f"{model}: has changed since {out / 'language'} began with it: model."):
        train_stages(recipes, out)
    (model / "model.safetensors").write_bytes(held)
    train_stages(recipes, out)


@pytest.mark.parametrize(
    ("written", "named", "last"),
    [("{}", "such as", "adapt/model or {}/tune/model"), ('{"stages": ["tune", "adapt"]}', "such as the last one,", "")],
    ids=["by an early version", "with their order"],
)
def test_stages_are_named_in_their_order(written: str, named: str, last: str, tmp_path: Path) -> None:
    """A copy may have lost the times, so none is the last one where nothing else says it."""
    for seconds, name in enumerate(("adapt", "tune")):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "config.json").write_text("{}")
        (tmp_path / name / "run.json").write_text(written)
        os.utime(tmp_path / name / "run.json", (seconds, seconds))
    order = ("adapt", "tune") if last else ("tune", "adapt")
    with refused(f"holds the stages {', '.join(order)}; name one, {named} {tmp_path / order[1]}"):
        is_run(tmp_path, None)
    with refused(f"give {tmp_path}/{last.format(tmp_path) or 'adapt/model'}"):
        check_llava_folder(tmp_path)
    for folder in (tmp_path, tmp_path / "tune"):
        with refused("expected a folder of labels or targets; found a training run, which sea-pipeline report shows"):
            Ledger.open(folder)


@pytest.mark.slow
def test_the_check_leaves_nothing_to_the_first_stage(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any]] = []
    made = train_run._Training

    def training(*given: Any) -> Any:
        seen.append((getattr(torch.backends, "fp32_precision", None), os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING")))
        return made(*given)

    def arguments(recipe: Recipe, *given: Any, real: Any = train_run.effective_arguments, **named: Any) -> Any:
        if recipe.seed == 5:
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
            torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
        return real(recipe, *given, **named)

    monkeypatch.delenv("FSDP_CPU_RAM_EFFICIENT_LOADING", raising=False)
    monkeypatch.setattr(train_run, "effective_arguments", arguments)
    monkeypatch.setattr(train_run, "_Training", training)
    before = getattr(torch.backends, "fp32_precision", None)
    heard = Heard()
    try:
        recipes = {name: each.model_copy(update={"teacher": Path("t")}) for name, each in stages(tiny, seed=5).items()}
        train_stages(recipes, tmp_path, reporter=heard)
    finally:
        os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
        torch.backends.fp32_precision = before  # type: ignore[attr-defined]
    assert seen[0] == (before, None)
    assert sum(said.startswith("teacher: is not read") for said in heard.warnings) == 1, "not for each stage"


@pytest.mark.slow
def test_train_runs_the_stages_and_goes_on(
    command: Any, tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alignment without the LLM's layers, then L_lm."""
    base = tiny_recipe(tiny, data={"evaluate": str(tiny.held_out)}).model_dump(mode="json")
    base["training_arguments"] = {"max_steps": 2, "per_device_train_batch_size": 4}
    base["stages"] = {"align": {"loss": {"lm": 0}}, "language": {"loss": {"sea": {"weight": "auto"}}}}
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(base, sort_keys=False))
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

"""Checkpoints kept along a run: what they hold, what they leave alone, and what `export --checkpoint` makes of them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT
from sea_pipeline.label_cache import label_cache
from sea_pipeline.storage import publish
from tests.support.damage import changed, without
from tests.support.heard import Heard
from tests.support.kills import killed_around
from tests.support.refused import refused
from tests.support.run_values import copied, weights, write_run
from tests.support.tiny_models import LAID_OUT, tiny_model
from tests.support.tiny_runs import FinishedRuns, World, tiny_recipe
from trainer.export import run_model
from trainer.export.run import ExportSettings, export_model
from trainer.model import checkpoints
from trainer.recipes.recipe import Recipe
from trainer.training import kept_checkpoints
from trainer.training.kept_checkpoints import KeptCheckpoints, steps_to_keep
from trainer.training.run import train

RUNS: dict[str, dict[str, Any]] = {
    "all": {"learning_rates": {"llm": 1e-3, "vision": 1e-3}},
    "tied": {"learning_rates": {"llm": 1e-3}},  # Gemma's embeddings are its head
    "lora": {"learning_rates": {"llm": 1e-2}, "lora": {"rank": 4, "alpha": 12}},
    "mixtral": {"learning_rates": {"llm": 1e-3}},
    "hrm_text": {"learning_rates": {"llm": 1e-2}, "lora": {"rank": 4, "alpha": 12}},
    "padded": {
        "data": {"image_aspect_ratio": "pad"}, "labels": {"transfer": True}, "loss": {"sea": {"weight": 0}}
    },
    "without the LLM": {"loss": {"lm": 0, "sea": {"match_norm": False}}},
}  # fmt: skip


def steady(world: World, steps: int, **changes: Any) -> Recipe:
    """With one learning rate throughout, so that a run of `steps` is the begin of a longer one."""
    arguments = {"max_steps": steps, "save_steps": 2, "save_total_limit": 1}
    arguments |= {"lr_scheduler_type": "constant", "warmup_steps": 0}
    return tiny_recipe(world, training_arguments=arguments, **changes)


def of(run: Path, step: int) -> Path:
    return run / "kept" / f"checkpoint-{step}" / "trained.safetensors"


def kept_of(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "kept").iterdir())


def exported(run: Path, out: Path, **settings: Any) -> Path:
    return export_model(ExportSettings.of(source=run, out=out, **settings)).out


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the card, which tells of another run."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "README.md"}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_kept_step_is_exported_as_a_run_that_ends_there(name: str, tiny: World, tmp_path: Path) -> None:
    """To the byte: weights, processor, tokenizer, configurations. The slow twin trains no further.

    The model is in bfloat16, as those of 7B are.
    """
    llm = "gemma" if name == "tied" else name if name in LAID_OUT else "llama"
    changes = RUNS[name] | {"model": str(tiny_model(tmp_path / "half", llm=llm, dtype="bfloat16"))}
    short = train(steady(tiny, 3, **changes), tmp_path / "short").out
    run = train(steady(tiny, 5, keep_checkpoints=[3], **changes), tmp_path / "long").out
    assert kept_of(run) == ["checkpoint-3"]
    dtypes = {value.dtype for value in load_file(of(run, 3)).values()}
    assert dtypes == {torch.bfloat16 if name in ("all", "tied", "mixtral", "padded") else torch.float32}
    end = content(exported(run, tmp_path / "end", checkpoint=5, compat=4))
    assert end["model.safetensors"] != content(exported(short, tmp_path / "model", compat=4))["model.safetensors"]
    for kind in ("model", "llm") if name == "lora" else ("model",):
        ours = content(exported(run, tmp_path / f"{kind}-3", kind=kind, checkpoint=3, compat=4))
        theirs = content(
            tmp_path / "model" if kind == "model" else exported(short, tmp_path / kind, kind=kind, compat=4)
        )
        assert ours == theirs
    if name == "lora":  # of another run, by an earlier version
        without(of(run, 3).parent / "files.json", "run")
        record = json.loads((run / "run.json").read_text())
        record["recipe"]["lora"]["rank"] = record["fields"]["recipe"]["lora"]["rank"] = 7
        write_run(run, record)
        with refused(match=r"expected adapters of rank 7, as in the run's recipe; found adapters of rank \d; name"):
            exported(run, tmp_path / "x", checkpoint=3)


@pytest.fixture
def whole(tiny: World, finished: FinishedRuns) -> Path:
    """A run that nothing happens to, which keeps steps 1 and 3 of 4."""
    arguments = {"save_total_limit": 9, "max_steps": 4}
    changes = {"data": {"evaluate": str(tiny.held_out)}, "training_arguments": arguments}
    return finished(tiny_recipe(tiny, name="mine", keep_checkpoints=[1, 0.75], **changes))


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """The same run as a kill behind step 3 leaves it."""
    return copied(whole, tmp_path / "out", 2)


def goes_on(run: Path, *steps: float) -> list[str]:
    """What a run says that goes on with other steps to keep."""
    said: list[str] = []
    recipe = Recipe.model_validate(json.loads((run / "run.json").read_text())["recipe"])
    train(recipe.model_copy(update={"keep_checkpoints": steps}), run, reporter=Heard(said))
    return said


def test_processes_that_look_at_unlike_times_write_together(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process has written the step when this one looks, and waits for it."""

    def of_the_first(found: list[list[int]]) -> None:
        found[:] = [[2]]

    monkeypatch.setattr(kept_checkpoints, "broadcast_object_list", of_the_first, raising=False)
    callback = KeptCheckpoints(steady(tiny, 4, keep_checkpoints=[2]), tmp_path, torch.float32, SILENT)
    written: list[int] = []
    monkeypatch.setattr(callback, "_write", lambda step, model, write: written.append(step))
    of(tmp_path, 2).parent.mkdir(parents=True)
    state = SimpleNamespace(global_step=2, max_steps=4)
    callback.on_train_begin(SimpleNamespace(should_save=False), state, None)
    assert written == [2]


def test_a_run_goes_on_from_the_others_and_writes_these_anew(tiny: World, stopped: Path, whole: Path) -> None:
    """Which steps are kept is no part of what a run is."""
    assert checkpoints.latest(stopped / "checkpoints") == stopped / "checkpoints" / "checkpoint-2"
    of(stopped, 3).write_bytes(b"of a former life")
    shutil.rmtree(of(stopped, 1).parent)
    said = goes_on(stopped, 1, 2, 3)
    assert "keep_checkpoints: the run is at step 2; not kept: 1" in said
    assert kept_of(stopped) == ["checkpoint-2", "checkpoint-3"]
    assert of(stopped, 3).read_bytes() == of(whole, 3).read_bytes()
    assert weights(stopped) == weights(whole) != {}
    held, trained = load_file(of(stopped, 2)), load_file(whole / "checkpoints" / "checkpoint-2" / "trained.safetensors")
    assert all(torch.equal(value, trained[name]) for name, value in held.items())


@pytest.mark.parametrize("before", [True, False])
def test_a_kill_leaves_no_half_of_one(before: bool, tiny: World, stopped: Path, whole: Path) -> None:
    label_cache(open_labels(tiny.labels))  # a folder that would be synced first
    with killed_around(publish, "sync_folder", 1, before=before):
        goes_on(stopped, 1, 3)
    assert kept_of(stopped) == ["checkpoint-1"]
    goes_on(stopped, 1, 3)
    assert kept_of(stopped) == ["checkpoint-1", "checkpoint-3"]
    assert of(stopped, 3).read_bytes() == of(whole, 3).read_bytes()


def test_what_can_be_exported_of_a_run_that_is_not_finished(
    tiny: World, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (0, 2, 3):
        exported(stopped, tmp_path / f"{step}", checkpoint=step)
    changed(of(stopped, 3).parent / "files.json", "run", value="0" * 64)
    with refused("found one of the run 000000000000…; name another step, or train it again"):
        exported(stopped, tmp_path / "x", checkpoint=3)
    shutil.rmtree(of(stopped, 3).parent)
    with refused(match=r"is not finished; run .* or name one of the steps 0, 1, 2 with --checkpoint"):
        exported(stopped, tmp_path / "x")
    with refused(match=r"--checkpoint 3: .* has no checkpoint of this step; expected one of 0, 1, 2; this run is "
                 "not finished, and may save the step later; keep_checkpoints"):  # fmt: skip
        exported(stopped, tmp_path / "x", checkpoint=3)
    shutil.rmtree(of(stopped, 1).parent)
    with refused(match=r"--checkpoint 1: .* has no checkpoint of this step; expected one of 0, 2; keep_checkpoints"):
        exported(stopped, tmp_path / "x", checkpoint=1)
    with (
        monkeypatch.context() as meanwhile,
        refused(match=r"--checkpoint 2: .* has no .*; expected one of 0; this run"),
    ):
        meanwhile.setattr(run_model, "_weights", lambda _: shutil.rmtree(stopped / "checkpoints" / "checkpoint-2"))
        exported(stopped, tmp_path / "x", checkpoint=2)
    with refused("expected the folder of a run; found no run.json"):
        exported(tiny.model, tmp_path / "x", checkpoint=1)
    assert not (tmp_path / "x").exists()


def test_the_card_says_the_step(whole: Path, tmp_path: Path) -> None:
    card = (exported(whole, tmp_path / "a", checkpoint=3, kind="projector") / "README.md").read_text()
    assert "- These are the weights of step 3, before the run's end.\n" in card
    assert "### mine\n\nstep 3, seed 3;" in card
    assert "held-out" not in card, "those are the end's"
    end = (exported(whole, tmp_path / "b", checkpoint=4, kind="projector") / "README.md").read_text()
    assert "4 steps, " in end
    assert "| held-out samples | start | end |" in end


def test_the_steps_of_shares(tiny: World, tmp_path: Path) -> None:
    assert steps_to_keep([0.1, 0.7, 3, 10, 0.95], 10) == [1, 3, 7]  # 0.7 * 10 is more than 7 in floats
    assert steps_to_keep([0.1, 0.5], 5196) == [520, 2598]
    with pytest.raises(UserError, match="found step 9, and the run has 2 steps; give steps up to 1, or shares"):
        train(steady(tiny, 2, keep_checkpoints=[0.5, 9]), tmp_path / "out")
    assert not (tmp_path / "out" / "kept").exists()
    with pytest.raises(UserError, match="the run has 1 steps; leave keep_checkpoints out, as the last step"):
        steps_to_keep([2], 1)


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, 0.0, True, "half", None])
def test_what_is_no_step(value: Any) -> None:
    """1.0 may be meant as all of the run, and as its first step."""
    with pytest.raises(ValueError, match=r"expected a step, such as 500, or a share of the run below 1"):
        Recipe.model_validate({"keep_checkpoints": [0.5, value]})

"""A run that was killed, wherever that was, ends with the same bytes as one that was not."""

import json
import math
import re
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from transformers import TrainerState

from sea_pipeline.core.errors import UserError
from sea_pipeline.labels.run import label_images
from sea_pipeline.report.runs import RunInput, runs_data
from sea_pipeline.storage import locks, publish
from tests.support import tiny_runs
from tests.support.heard import Heard
from tests.support.kills import killed_around
from tests.support.programs import Begin
from tests.support.refused import refused
from tests.support.run_values import copied, killed, tensors, values, weights
from tests.support.tiny_runs import FinishedRuns, World, evaluations, label_settings, logged, short_recipe, tiny_recipe
from trainer.model import checkpoints
from trainer.training import run as train_run
from trainer.training import run_folder
from trainer.training.arguments import training_arguments
from trainer.training.callbacks import Screen
from trainer.training.resume import AsOftenAsAsked
from trainer.training.run import train
from trainer.training.run_folder import begin_run

SELDOM = "logged seldom, with dropout and persistent workers"
STAGES: dict[str, dict[str, Any]] = {
    "projector": {
        "loss": {"sea": {"weight": "auto"}, "measure_every": 1},
        "data": {"random_crop": 0.5},
        "labels": {"transfer": True},
    },
    "projector and llm": {
        "loss": {"sea": {"weight": "auto"}, "measure_every": 2},
        "learning_rates": {"llm": 1e-3},
        "training_arguments": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    },
    SELDOM: {
        "lora": {"rank": 2, "dropout": 0.5},
        "learning_rates": {"llm": 1e-3},
        "loss": {"sea": {"weight": "auto"}, "measure_every": 1},
        "training_arguments": {"logging_steps": 3, "dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    },
}
KILLED = {"projector": ("log", 5), "projector and llm": ("save", 4)}
RESUMED = {"projector": (2, 6, 8), "projector and llm": (4, 8), SELDOM: (4,)}
"""From the others the killed runs go on."""


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_goes_on_exactly(
    name: str, tiny: World, finished: FinishedRuns, tmp_path: Path, program: Begin
) -> None:
    recipe, out = tiny_recipe(tiny, **STAGES[name]), tmp_path / "killed"
    event, step = KILLED[name]
    killed(program, recipe, out, event, step)
    folders = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert folders == {"log": ["checkpoint-2", "checkpoint-4"], "save": [".tmp", "checkpoint-2"]}[event]
    assert checkpoints.step_of(checkpoints.latest(out / "checkpoints") or Path()) == (4, 2)[event == "save"]
    train(recipe, out, resume=True)
    whole = finished(recipe)
    assert weights(out) == weights(whole) != {}
    assert values(out) == values(whole)
    assert [line["step"] for line in logged(whole)] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("stage", STAGES)
def test_every_checkpoint_leads_to_the_same_end(
    stage: str, tiny: World, finished: FinishedRuns, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tiny, **STAGES[stage])
    whole = finished(recipe)
    for step in RESUMED[stage]:
        out = copied(whole, tmp_path / f"from-{step}", step)
        train(recipe, out)
        assert weights(out) == weights(whole), f"from step {step}"
        if stage != SELDOM:  # a line of several steps says what its own process saw
            assert values(out) == values(whole)


def test_a_resumed_run_saves_logs_and_evaluates_as_often_as_it_is_now_asked(
    tiny: World, finished: FinishedRuns, tmp_path: Path
) -> None:
    whole = finished(tiny_recipe(tiny, data={"evaluate": str(tiny.held_out)}))
    out = copied(whole, tmp_path / "out", 4)
    arguments = {"save_steps": 1, "logging_steps": 2}
    train(tiny_recipe(tiny, data={"evaluate": str(tiny.held_out)}, evaluate_every=3, training_arguments=arguments), out)
    saved = {checkpoints.step_of(path) for path in (out / "checkpoints").iterdir()}
    assert saved == {2, 4, 5, 6, 7, 8}
    assert [line["step"] for line in logged(out)][4:] == [6, 8]
    assert [line["step"] for line in evaluations(out)] == [0, 6, 8]
    assert weights(out) == weights(whole)


@pytest.mark.parametrize(
    ("given", "best"),
    [
        ({"metric_for_best_model": "lm_loss"}, (5.5, 6)),
        ({"metric_for_best_model": "tacs"}, (0.3, 4)),
        ({"metric_for_best_model": "eval_gap", "greater_is_better": True}, (1.7, 2)),
        ({"metric_for_best_model": "meaningful"}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_the_best_of_a_resumed_run_is_by_the_metric_of_now(
    given: dict[str, Any], best: tuple[float | None, int | None], tiny: World, tmp_path: Path
) -> None:
    """Of the checkpoints that are there, because no other can be kept."""
    lines: list[dict[str, Any]] = [
        {"step": 1, "loss": 9.0},
        {"step": 2, "eval_lm_loss": 6.0, "eval_tacs": 0.2, "eval_gap": 1.7},
        {"step": 4, "eval_lm_loss": math.nan, "eval_tacs": 0.3, "eval_gap": 1.6},
        {"step": 6, "eval_lm_loss": 5.5, "eval_tacs": 0.3, "eval_gap": 1.5},
        {"step": 7, "eval_lm_loss": 5.0, "eval_tacs": 0.4, "eval_gap": 1.8},
    ]
    state = TrainerState(best_metric=5.0, best_global_step=5, log_history=lines)
    args = training_arguments(tiny_recipe(tiny, training_arguments=given), tmp_path)
    for step in (2, 4, 6):
        (Path(str(args.output_dir)) / f"checkpoint-{step}").mkdir(parents=True)
    AsOftenAsAsked().on_train_begin(args, state, None)
    assert (state.best_metric, state.best_global_step) == best


def test_a_checkpoint_names_no_folder_of_the_best(tiny: World, tmp_path: Path) -> None:
    """It would be the one in which that was written aside, of which each resumption would warn."""
    arguments = {"max_steps": 2, "save_steps": 1, "lr_scheduler_type": "reduce_lr_on_plateau"}
    data = {"evaluate": str(tiny.held_out)}
    tiny_runs.tiny_trainer(
        tiny_recipe(tiny, data=data, evaluate_every=1, training_arguments=arguments), tmp_path
    ).train()
    states = [json.loads(path.read_text()) for path in tmp_path.rglob("trainer_state.json")]
    assert len(states) == 2
    assert all(state["best_global_step"] for state in states)
    assert [state["best_model_checkpoint"] for state in states] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize("other", ["rows", "labels", "none"])
def test_metrics_of_other_rows_or_labels_do_not_stand_side_by_side(other: str, tiny: World, tmp_path: Path) -> None:
    """Lines of early versions do not say what they are of, and count as the same."""
    held_out, labels = tmp_path / "held.json", tmp_path / "labels"
    shutil.copy(tiny.held_out, held_out)
    changes: dict[str, Any] = {"loss": {"sea": {"weight": 0}}, "data": {"evaluate": str(held_out)}}
    changes["training_arguments"] = {"max_steps": 4}
    out = copied(train(tiny_recipe(tiny, **changes), tmp_path / "whole").out, tmp_path / "out", 2)
    if other == "rows":
        held_out.write_text(json.dumps(json.loads(held_out.read_text())[1:]))
    elif other == "labels":
        with tiny_runs.colours():
            label_images(label_settings(tiny.data.parent / "images", tiny.words, labels, top_n=2))
        changes["labels"] = {"path": str(labels)}
    else:
        lines = (out / "metrics.jsonl").read_text()
        (out / "metrics.jsonl").write_text(re.sub(r', "measured_on": "\w+"', "", lines))
    heard = Heard()
    summary = train(tiny_recipe(tiny, **changes), out, reporter=heard).summary
    curve = runs_data([RunInput.of(out, "out")])["list"][0]["curves"]["eval_lm_loss"]
    told = f"{out}: the metrics at the start are of other held-out rows or labels than those at the end; "
    if other == "none":
        assert (set(summary["start"]), curve["steps"]) == (set(summary["end"]), [0, 4])
        assert not any(told in line for line in heard.warnings)
    else:
        assert (summary["start"], curve["steps"]) == ({}, [4])
        assert [line for line in heard.warnings if told in line]
        assert "label_hit@1" in summary["end"]


def test_a_model_that_is_replaced_meanwhile_does_not_get_into_the_one_that_is_saved(
    tiny: World, finished: FinishedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is frozen is read from its files again at the end."""
    model = Path(shutil.copytree(tiny.model, tmp_path / "model"))
    recipe, out = short_recipe(tiny, model=str(model)), tmp_path / "out"

    def replace(*_: Any, **__: Any) -> None:
        other = {name: value + 1 if "language_model" in name else value for name, value in tensors(model).items()}
        save_file(other, model / "model.safetensors", metadata={"format": "pt"})

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Screen, "on_train_end", replace)
        with refused(
            f"{model}: has changed since the run began; put it back and run the same command again (", "is kept"
        ):
            train(recipe, out)
    assert not (out / "model").exists()
    shutil.copy(tiny.model / "model.safetensors", model)
    train(recipe, out)
    assert weights(out) == weights(finished(short_recipe(tiny)))


def test_a_run_that_a_callback_stops_is_not_finished(
    tiny: World, finished: FinishedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Screen, args: Any, state: Any, control: Any, **__: Any) -> None:
        control.should_training_stop = state.global_step == 3

    recipe, out = tiny_recipe(tiny), tmp_path / "out"
    with monkeypatch.context() as stopped:
        stopped.setattr(Screen, "on_step_end", stop)
        with refused(f"{out}: stopped at step 3 of 8; run the same command again (", "checkpoint-2 is kept"):
            train(recipe, out)
    train(recipe, out)
    assert weights(out) == weights(finished(recipe))
    assert values(out) == values(finished(recipe))


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_is_killed_as_it_begins_goes_on(tiny: World, tmp_path: Path, before: bool) -> None:
    recipe = tiny_recipe(tiny, training_arguments={"max_steps": 2})
    with killed_around(publish, "_put_in_place", 1, before=before):
        train(recipe, tmp_path / "out")
    assert train(recipe, tmp_path / "out").summary["steps"] == 2


@pytest.mark.parametrize("rival", [0, 1])
def test_another_machine_may_begin_it_meanwhile(
    tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rival: int
) -> None:
    recipe, out, plain = tiny_recipe(tiny), tmp_path / "out", run_folder.entries

    def beaten(folder: Path) -> list[Any]:
        monkeypatch.setattr(run_folder, "entries", plain)
        found = plain(folder)
        begin_run(out, {"seed": rival}, recipe, resume=False)
        return found

    monkeypatch.setattr(run_folder, "entries", beaten)
    with pytest.raises(UserError, match="holds another run: seed") if rival else nullcontext():
        begin_run(out, {"seed": 0}, recipe, resume=False)
    assert run_folder.entries is plain


def train_patiently() -> None:
    """Trains, and waits for another process however slow the machine is."""
    train_run.claimed_for_run = partial(locks.claimed_for_run, seconds=500)  # type: ignore[attr-defined]
    tiny_runs.main()


def test_two_at_once_train_one_after_the_other(
    tiny: World, finished: FinishedRuns, tmp_path: Path, program: Begin
) -> None:
    recipe = tiny_recipe(tiny)
    whole = finished(recipe)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    both = [program(tmp_path / "recipe.json", tmp_path / "out", main=train_patiently) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0], [one.stderr for one in both]
    assert weights(tmp_path / "out") == weights(whole)
    assert values(tmp_path / "out") == values(whole)


def test_a_run_that_another_one_finishes_meanwhile_stays_as_it_is(
    tiny: World, finished: FinishedRuns, tmp_path: Path, meanwhile: Any
) -> None:
    """A kill while its model was written again would leave a finished run without one."""
    recipe, out = tiny_recipe(tiny), tmp_path / "out"
    whole = finished(recipe)
    meanwhile(train_run, "claimed_for_run", lambda: shutil.copytree(whole, out, dirs_exist_ok=True))
    again = train(recipe, out)
    assert again.summary == json.loads((whole / "summary.json").read_text())
    assert [path.name for path in whole.rglob("*") if not _is_untouched(out / path.relative_to(whole), path)] == []


def _is_untouched(copy: Path, path: Path) -> bool:
    """A copy has the times of what it is of."""
    return copy.stat().st_mtime_ns == path.stat().st_mtime_ns


def test_a_folder_that_another_run_takes_meanwhile_is_refused(
    tiny: World, tmp_path: Path, meanwhile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has saved nothing yet, and nobody seems to work on it."""
    out = tmp_path / "out"
    meanwhile(train_run, "claimed_for_run", lambda: begin_run(out, {"seed": 4}, tiny_recipe(tiny), resume=False))
    monkeypatch.setattr(train_run, "_Training", lambda *_: pytest.fail("it is trained"))
    with pytest.raises(UserError, match="holds another run: "):
        train(tiny_recipe(tiny), out)
    assert json.loads((out / "run.json").read_text())["fields"] == {"seed": 4}


def test_who_waits_too_long_is_told_so(tmp_path: Path) -> None:
    with locks.claimed_for_run(tmp_path), pytest.raises(UserError, match="another process works on it"):  # noqa: SIM117
        with locks.claimed_for_run(tmp_path, seconds=0.1):
            pass
    with locks.claimed_for_run(tmp_path, seconds=0.1):
        pass


def test_a_kill_as_the_log_is_cut_loses_none_of_it(tiny: World, finished: FinishedRuns, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny, data={"evaluate": str(tiny.held_out)})
    whole = finished(recipe)
    out = copied(whole, tmp_path / "out", 4)
    with killed_around(publish, "_put_in_place", 1, before=True):
        train(recipe, out)
    again = train(recipe, out)
    assert values(out) == values(whole)
    assert again.summary["start"] == json.loads((whole / "summary.json").read_text())["start"]

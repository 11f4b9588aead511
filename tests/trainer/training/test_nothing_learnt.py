"""Runs and steps of which a term learns nothing, or nothing at all, and shares of a step."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.heard import Heard
from tests.support.refused import refused
from tests.support.tiny_runs import ROWS, World, logged, tiny_recipe, tiny_trainer
from trainer.attach import attached as attached_module
from trainer.data import dataset
from trainer.recipes.recipe import ExistingModel
from trainer.sampling import Drawn
from trainer.training.callbacks import FewPairs, MetricsLog
from trainer.training.run import train
from trainer.training.run_summary import refuse_untrained


@pytest.mark.parametrize(("words", "advice"), [(64, "loss.sea.gather"), (63, "the list has 63; label with a list of")])
def test_few_pairs_and_none_are_said_once(words: int, advice: str) -> None:
    callback = FewPairs(heard := Heard(), "runs/labels/mine", words)
    for pairs in ({"sea_pairs": 64.0}, {}, *({"sea_pairs": each} for each in (63.0, 3.0, 0.0, 0.0))):
        callback.on_log(None, None, None, logs=pairs)
    few, none = heard.lines
    assert "63 pairs" in few
    assert few.endswith(advice) or f"{advice} more words" in few
    assert "sea-pipeline inspect runs/labels/mine" in none
    assert heard.warnings == [none]


@pytest.mark.slow
@pytest.mark.parametrize("attached", [False, True])
def test_a_run_without_pairs_is_said_and_does_not_end_as_finished(
    attached: bool, tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with labels carried to crops that they do not overlap; an attached model still learns text."""
    none = np.zeros(0, np.int64)
    for module in (dataset, attached_module):
        monkeypatch.setattr(module, "draw", lambda *_, **__: Drawn(none, none))
    recipe = tiny_recipe(tiny, loss={"lm": float(attached)}, training_arguments={"max_steps": 2})
    recipe = recipe.model_copy(update={"model": ExistingModel(attach=tiny.model)} if attached else {})
    ends = nullcontext() if attached else refused("trained nothing: the loss is 0 in all 2 logged steps, because L_a")
    with ends:
        train(recipe, tmp_path / "out", reporter=(heard := Heard()))
    assert sum("no pair of patch and word" in line for line in heard.warnings) == 1
    assert [line["sea_pairs"] for line in logged(tmp_path / "out")] == [0.0, 0.0]
    if not attached:
        with refused("trained nothing"):
            train(recipe, tmp_path / "out")
        assert not (tmp_path / "out" / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("attached", [False, True])
def test_basic_is_a_mean_over_samples_with_images(attached: bool, tiny: World, tmp_path: Path) -> None:
    """However a step of all rows is cut, one of which is text; the last micro-batch may be smaller."""
    loss = {"norm": "token", "sea": {"weight": 0}, "das": {"weight": 1.0}}
    found = []
    for batch in (ROWS, 5, 3, 1):
        arguments = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": -(-ROWS // batch)}
        recipe = tiny_recipe(tiny, loss=loss, training_arguments=arguments | {"max_steps": 1, "save_strategy": "no"})
        recipe = recipe.model_copy(update={"model": ExistingModel(attach=tiny.model)} if attached else {})
        train(recipe, out := tmp_path / str(batch))
        (line,) = logged(out)
        assert line["loss"] == pytest.approx(line["loss_lm"] + line["loss_das"], rel=1e-6)
        found.append([line[name] for name in ("loss_das", "grad_norm")])
    for one in found[1:]:
        assert one == pytest.approx(found[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "stops"), [(None, 1), (2.0**-23, 3)])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(
    scale: float | None, stops: int, tiny: World, tmp_path: Path
) -> None:
    """fp16 skips such steps, and halves its scale, as long as that may help. The log stays JSON."""
    trainer = tiny_trainer(tiny_recipe(tiny), tmp_path)
    weight = next(trainer.model.projector.parameters())
    weight.register_hook(lambda gradient: gradient * torch.inf)
    before = weight.detach().clone()
    if scale is not None:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with refused(f"step {stops}: the norm of the gradient is ", ", though each loss is finite; stopped before"):
        trainer.train()
    assert torch.equal(weight, before)
    path = tmp_path / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [line["grad_norm"] for line in lines] == [None] * (stops - 1)
    if lines:
        with refused("trained nothing: fp16 skipped all 2 logged steps"):
            refuse_untrained(lines, tmp_path)
        MetricsLog(path, lambda *_: None).cut(1)
        assert path.read_text() == text.splitlines(keepends=True)[0]
    refuse_untrained([*lines, {"step": 3, "loss": 1.0, "grad_norm": 0.5}], tmp_path)
    refuse_untrained([{"step": 10, "loss": 1.0, "grad_norm": None}], tmp_path)  # of nine steps it says nothing


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"max_steps": 1}, {"max_steps": -1, "per_device_train_batch_size": 50}])
def test_a_run_that_is_all_at_the_start_of_its_warm_up_is_refused(
    given: dict[str, Any], tiny: World, tmp_path: Path
) -> None:
    """Its only step would have a learning rate of 0."""
    given = given | {"warmup_steps": 0.03}
    with refused("nothing would train", "set warmup_steps: 0", start="training_arguments.warmup_steps: "):
        train(tiny_recipe(tiny, training_arguments=given), tmp_path / "out")
    recipe = tiny_recipe(tiny, training_arguments=given | {"warmup_steps": 0})
    assert train(recipe, tmp_path / "out").summary["steps"] == 1


def test_logged_rates_of_0_do_not_end_as_finished(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1.0, "grad_norm": 0.5, "learning_rate": 0.0} for step in (1, 2)]
    with refused("trained nothing: the learning rate is 0 in all 2 logged steps"):
        refuse_untrained(lines, tmp_path)
    refuse_untrained([*lines, lines[0] | {"step": 3, "learning_rate": 1e-9}], tmp_path)
    refuse_untrained([lines[0] | {"step": 10}], tmp_path)  # of nine steps it says nothing

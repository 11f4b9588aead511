"""What would not do what it says is refused before a run begins, and a run that has begun goes on with it."""

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from sea_pipeline.core.errors import UserError
from tests.support.refused import refused
from tests.support.tiny_runs import World, tiny_recipe
from trainer.training.argument_checks import effective_arguments
from trainer.training.run import train

FOLLOWING: dict[str, Any] = {"lr_scheduler_type": "greedy"}
PLATEAU: dict[str, Any] = {"lr_scheduler_type": "reduce_lr_on_plateau"}
BY_TACS: dict[str, Any] = {"metric_for_best_model": "tacs"}
MAX: dict[str, Any] = {"lr_scheduler_kwargs": {"mode": "max"}}
BETA: dict[str, Any] = {"adam_beta1": 0.5}
RELATIVE = "scale_parameter=True, relative_step=False"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr_scheduler_type": "constant", "warmup_steps": 4}, "or set lr_scheduler_type: constant_with_warmup"),
        (FOLLOWING | {"warmup_steps": 0.1}, "warmup_steps: greedy has no warm-up; leave it out"),
        ({"optim_args": "lr=0.5"}, "lr does nothing; set learning_rates in its place"),
        ({"optim": "sgd", "optim_args": "momentum=0.9, weight_decay=1"}, "set training_arguments.weight_decay in its"),
        ({"optim_args": "betas=0.5"}, "adamw_torch_fused does not read betas=0.5"),
        ({"optim": "adafactor", "optim_args": RELATIVE}, "adafactor does not read scale_parameter=True; leave it out"),
        ({"optim": "adafactor", "optim_args": "warmup_init=True"}, "adafactor does not read warmup_init=True"),
        (BETA | {"optim": "sgd"}, "adam_beta1: sgd does not read it; leave it out"),
        ({"optim": "schedule_free_sgd"}, "optim: the weights that schedule_free_sgd trains are means"),
        (PLATEAU | BY_TACS, "mode: expected max, because a higher tacs is better; found min; set it to max"),
        (FOLLOWING | BY_TACS | {"lr_scheduler_kwargs": {"patience": 0}}, "mode: expected max, because a higher tacs"),
        (PLATEAU | MAX, "mode: expected min, because a lower lm_loss is better; found max; set it to min"),
        (PLATEAU | MAX | {"metric_for_best_model": "eval_gap"}, "because a lower eval_gap is better"),
        ({"metric_for_best_model": "distinct_tokens"}, "found 'distinct_tokens'; expected one of lm_loss, tacs, "),
    ],
)
def test_what_would_do_nothing_is_refused(
    given: dict[str, Any], said: str, tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has saved something goes on with it."""
    recipe = tiny_recipe(tiny, training_arguments=given, evaluate_every=1)
    with refused(said, start="training_arguments."):
        train(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.chdir(tmp_path)
    begun = tmp_path / "runs" / "train" / f"{recipe.name}-01234567"
    begun.mkdir(parents=True)
    (begun / "run.json").touch()
    for out in (begun, None):
        with refused(said, start="training_arguments."):
            effective_arguments(recipe, out)
    (begun / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    for out in (begun, None):  # without a name, it may be this run
        try:
            effective_arguments(recipe, out)
        except UserError as error:  # the package is not there
            assert "schedulefree" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "given",
    [
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "constant", "warmup_steps": 0},
        FOLLOWING,
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=True"},
        {"optim": "rmsprop", "optim_args": "centered=false"},
        {"optim": "adafactor", "optim_args": "scale_parameter=False, relative_step=False, warmup_init=False"},
        BETA,
        {"optim": "sgd", "adam_beta1": 0.9},
        PLATEAU,
        PLATEAU | BY_TACS | MAX,
        PLATEAU | BY_TACS | {"lr_scheduler_kwargs": '{"mode": "max"}'},
        PLATEAU | BY_TACS | {"greater_is_better": False},
        BY_TACS,
        {"metric_for_best_model": "distinct_tokens", "greater_is_better": True},
    ],
)
def test_what_does_what_it_says_is_not(given: dict[str, Any], tiny: World) -> None:
    effective_arguments(tiny_recipe(tiny, training_arguments=given, evaluate_every=1), None)


@pytest.mark.parametrize("name", ["ddp_static_graph", "ddp_find_unused_parameters"])
def test_what_hides_gradients_from_their_measurement_is_refused(
    name: str, tiny: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"training_arguments": {name: True}}
    effective_arguments(tiny_recipe(tiny, **arguments), None)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with refused("DDP would hide the gradient of each term", start=f"training_arguments.{name}: "):
        effective_arguments(tiny_recipe(tiny, **arguments), None)
    for loss in ({"sea": {"weight": 0}}, {"lm": 0}):  # nothing is measured
        effective_arguments(tiny_recipe(tiny, **arguments, loss=loss), None)

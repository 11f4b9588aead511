"""What each learning rate is at every step, for every scheduler that transformers has."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SchedulerType, TrainerCallback

from sea_pipeline.core.errors import UserError
from tests.support.refused import refused
from tests.support.tiny_runs import World, tiny_recipe, tiny_trainer
from trainer.recipes.recipe import Recipe
from trainer.training.arguments import training_arguments
from trainer.training.run import train

ONE = {"projector": 1e-3}
TWO = {"projector": 1e-3, "llm": 2e-5}
STEPS = 10
EVALUATED: dict[str, Any] = {"evaluate_every": 1, "lr_scheduler_kwargs": {"patience": 0}}
CASES: dict[str, list[dict[str, Any]]] = {
    "linear": [{}],
    "cosine": [{}, {"lr_scheduler_kwargs": {"num_cycles": 1.5}}],
    "cosine_with_restarts": [{"lr_scheduler_kwargs": {"num_cycles": 2}}],
    "polynomial": [{}, {"lr_scheduler_kwargs": {"power": 2.0}}, {"lr_scheduler_kwargs": {"lr_end": 1e-4}}],
    "constant": [{}],
    "constant_with_warmup": [{}],
    "inverse_sqrt": [{}, {"lr_scheduler_kwargs": {"timescale": 2}}],
    "reduce_lr_on_plateau": [EVALUATED, EVALUATED | {"lr_scheduler_kwargs": {"patience": 0, "min_lr": 5e-4}}],
    "cosine_with_min_lr": [{"lr_scheduler_kwargs": {"min_lr": 1e-4}}, {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}}],
    "cosine_warmup_with_min_lr": [
        {"lr_scheduler_kwargs": {"min_lr": 1e-4}},
        {"lr_scheduler_kwargs": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.5}},
    ],
    "warmup_stable_decay": [{"lr_scheduler_kwargs": {"num_decay_steps": 4, "min_lr_ratio": 0.1}}],
    "greedy": [
        EVALUATED | {"lr_scheduler_kwargs": {"patience": 0, "factor": 0.5, "mode": mode}} for mode in ("min", "max")
    ],
}  # fmt: skip
"""Of each scheduler the settings that are tried; with two rates those that name a rate are refused."""


class Rates(TrainerCallback):
    """Keeps the rate of every group at every step."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Called by the Trainer."""
        self.seen.append([float(group["lr"]) for group in named["optimizer"].param_groups])


def recipe_of(world: World, scheduler: str, settings: dict[str, Any], rates: dict[str, float]) -> Recipe:
    arguments = {"max_steps": STEPS, "save_strategy": "no", "lr_scheduler_type": scheduler, "warmup_steps": 2}
    kept = {key: value for key, value in settings.items() if key != "evaluate_every"}
    evaluated = {"evaluate_every": 1, "data": {"evaluate": str(world.held_out)}} if "evaluate_every" in settings else {}
    return tiny_recipe(world, learning_rates=rates, training_arguments=arguments | kept, **evaluated)


class TensorRates(torch.optim.AdamW):
    """Keeps each rate as a tensor, as torchao's optimizers do."""

    def __init__(self, groups: Any, **options: Any) -> None:
        super().__init__(groups, **options)
        for group in self.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)


def rates_of(
    world: World,
    out: Path,
    scheduler: str,
    settings: dict[str, Any],
    rates: dict[str, float],
    *,
    trained: bool = False,
    optimizer: type[torch.optim.Optimizer] | None = None,
) -> Any:
    """By peak rate, the rates of ten steps; only what follows a metric needs training for them, or who asks for it."""
    trainer = tiny_trainer(recipe_of(world, scheduler, settings, rates), out)
    if optimizer is not None:
        trainer.get_optimizer_cls_and_kwargs = lambda *_: (optimizer, {})  # type: ignore[method-assign]
    spy = Rates()
    trainer.add_callback(spy)
    peaks = [float(group["lr"]) for group in trainer.create_optimizer().param_groups]
    if trained or "evaluate_every" in settings:
        trainer.train()
    else:
        schedule = trainer.create_scheduler(STEPS, trainer.optimizer)
        for _ in range(STEPS):
            spy.on_pre_optimizer_step(None, None, None, optimizer=trainer.optimizer)
            trainer.optimizer.step()
            schedule.step()
    assert len(spy.seen) == STEPS
    return dict(zip(peaks, map(list, zip(*spy.seen, strict=True)), strict=True))


def floor_of(settings: dict[str, Any], peak: float) -> float:
    options = settings.get("lr_scheduler_kwargs", {})
    share = options.get("min_lr_rate", options.get("min_lr_ratio", 0.0))
    return max(options.get("min_lr", options.get("lr_end", 0.0)), share * peak)


def test_every_scheduler_is_tried() -> None:
    assert CASES.keys() == {kind.value for kind in SchedulerType}


@pytest.mark.slow
def test_training_has_the_rates_of_its_schedule(tiny: World, tmp_path: Path) -> None:
    asked = (tiny, tmp_path, "cosine", {}, TWO)
    assert rates_of(*asked, trained=True) == rates_of(*asked) == rates_of(*asked, optimizer=TensorRates)


@pytest.mark.parametrize("scheduler", CASES)
def test_no_rate_is_above_its_peak_or_below_its_floor(scheduler: str, tiny: World, tmp_path: Path) -> None:
    for number, settings in enumerate(CASES[scheduler]):
        for rates in (ONE, TWO):
            named = {"min_lr", "lr_end"} & settings.get("lr_scheduler_kwargs", {}).keys()
            if named and rates is TWO:
                with refused(match=rf"lr_scheduler_kwargs\.{named.pop()}: .* is another share of each"):
                    training_arguments(recipe_of(tiny, scheduler, settings, rates), tmp_path)
                continue
            found = rates_of(tiny, tmp_path / f"{number}-{len(rates)}", scheduler, settings, rates)
            assert set(found) == set(rates.values())
            for peak, seen in found.items():
                assert max(seen) == pytest.approx(peak)
                assert min(seen[2:]) >= floor_of(settings, peak) * (1 - 1e-9)  # behind the warm-up
                assert [rate / peak for rate in seen] == pytest.approx([rate / 1e-3 for rate in found[1e-3]])


def test_a_floor_is_where_it_was_set(tiny: World, tmp_path: Path) -> None:
    """transformers would have divided by its own learning rate of 5e-5."""
    arguments = {"lr_scheduler_kwargs": {"min_lr": 1e-5}}
    (seen,) = rates_of(tiny, tmp_path, "cosine_with_min_lr", arguments, ONE).values()
    for step in range(2, STEPS):
        half = (1 + math.cos(math.pi * (step - 2) / 8)) / 2
        assert seen[step] == pytest.approx(1e-5 + (1e-3 - 1e-5) * half)
    (seen,) = rates_of(
        tiny, tmp_path / "polynomial", "polynomial", {"lr_scheduler_kwargs": {"lr_end": 1e-4}}, ONE
    ).values()
    assert seen[2:] == pytest.approx([1e-4 + 9e-4 * (1 - step / 8) for step in range(8)])


MIN = "cosine_with_min_lr"
NOT_A_RATE = "expected at least 0 and at most the learning rate, 0.001; found"


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        (MIN, {"min_lr": 1e-2}, f"min_lr: {NOT_A_RATE}"),
        (MIN, {"min_lr": "low"}, "min_lr: expected a number; found 'low'"),
        (MIN, {"min_lr_rate": 1.5}, "would have 1.[0-9]+ times the learning rate; expected a share from"),
        (MIN, {}, "cosine_with_min_lr over 10 steps.*One of min_lr or min_lr_rate should be set"),
        ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1, "warmup_lr_rate": 3}, "at step 1 of 10 .* 3 times"),
        ("warmup_stable_decay", {}, "missing 1 required positional argument: 'num_decay_steps'; give other options"),
        ("warmup_stable_decay", {"num_decay_steps": 4, "min_lr_ratio": 2}, "2 times the learning rate"),
        ("polynomial", {"power": -1}, "polynomial.* times the learning rate|polynomial over 10 steps"),
        ("polynomial", {"lr_end": 1e-3}, r"lr_end \(0.001\) must be smaller than initial lr"),
        ("linear", {"min_lr": 1e-5}, "linear over 10 steps.*unexpected keyword argument 'min_lr'"),
        ("constant", {"min_lr": 1e-5}, "constant has no options; found min_lr; leave them out"),
        ("inverse_sqrt", {"timescale": -5}, "inverse_sqrt"),
        ("cosine", "num_cycles", "expected names and values; found 'num_cycles'"),
        ("cosine", 3, "expected names and values; found 3"),
    ],
)
def test_what_would_leave_the_range_is_refused(scheduler: str, options: Any, message: str, tiny: World) -> None:
    arguments = {"max_steps": STEPS, "warmup_steps": 2, "lr_scheduler_type": scheduler, "lr_scheduler_kwargs": options}
    with refused(start="training_arguments.lr_scheduler_kwargs", match=message):
        training_arguments(tiny_recipe(tiny, training_arguments=arguments), Path())


def test_steps_are_counted_before_the_first_one(tiny: World, tmp_path: Path) -> None:
    """How many they are is known when the data is read: three an epoch, all of them warm-up."""
    arguments = {"max_steps": -1, "num_train_epochs": 1, "lr_scheduler_type": "polynomial", "warmup_steps": 3}
    trainer = tiny_trainer(tiny_recipe(tiny, training_arguments=arguments), tmp_path)
    with pytest.raises(UserError, match="polynomial over 3 steps, 3 of them warm-up, is not possible"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("scheduler", ["greedy", "reduce_lr_on_plateau"])
def test_what_a_scheduler_follows(scheduler: str, tiny: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{scheduler} follows a metric of held-out samples; set `evaluate_every`"):
        training_arguments(recipe_of(tiny, scheduler, {}, ONE), tmp_path)
    settings = EVALUATED | {"warmup_steps": 0}
    unknown = {"metric_for_best_model": "accuracy"}
    for given in (unknown, unknown | {"greater_is_better": False}):  # it is found before the run, or by measuring
        with pytest.raises(UserError, match="metric_for_best_model: found 'accuracy'; expected one of lm_loss, tacs, "):
            train(recipe_of(tiny, scheduler, settings | given, ONE), tmp_path / "out")


@pytest.mark.parametrize("options", [{"max_lr": 1.0}, {"factor": 0}, {"factor": 2}])
def test_greedy_stays_below_the_peak(options: dict[str, float], tiny: World, tmp_path: Path) -> None:
    settings = EVALUATED | {"lr_scheduler_kwargs": options}
    with pytest.raises(UserError, match=next(iter(options))):
        training_arguments(recipe_of(tiny, "greedy", settings, TWO), tmp_path)


def test_optimizers_with_groups_of_their_own(tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GaLore's and APOLLO's are made for transformers' one learning rate."""
    with pytest.raises(UserError, match=r"optim_target_modules: found .* know nothing of learning_rates"):
        training_arguments(tiny_recipe(tiny, training_arguments={"optim_target_modules": "all-linear"}), tmp_path)
    trainer = tiny_trainer(tiny_recipe(tiny), tmp_path)
    monkeypatch.setattr(trainer, "get_optimizer_cls_and_kwargs", lambda *_: (torch.optim.SGD, {"params": []}))
    with pytest.raises(UserError, match=r"training_arguments\.optim: .* forms groups of its own"):
        trainer.create_optimizer()


ELSEWHERE = [f"ACCELERATE_USE_{what}" for what in ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")]


@pytest.mark.parametrize("name", [None, *ELSEWHERE])
def test_deepspeed_is_refused(name: str | None, tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {} if name else {"deepspeed": {"zero_optimization": {"stage": 2}}}
    if name:
        monkeypatch.setenv(name, "true")
    with pytest.raises(UserError, match=r"set training_arguments\.fsdp: true and fsdp_config: \{version: 2") as found:
        train(tiny_recipe(tiny, training_arguments=given), tmp_path / "out")
    assert (name or "training_arguments.deepspeed") in str(found.value)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()
    if name:
        monkeypatch.setenv(name, "false")
        training_arguments(tiny_recipe(tiny), tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "fitting", "key"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", {"bf16": True}, "bf16 or training_arguments.fp16"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", {"bf16": True}, "bf16"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", {"torch_compile": True}, "torch_compile"),
        ("ACCELERATE_USE_FSDP", "true", {"fsdp": True}, "fsdp"),
    ],
)
def test_what_accelerate_launch_says_is_said_by_the_recipe_or_refused(
    name: str, value: str, fitting: dict[str, Any], key: str, tiny: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with refused(f"set training_arguments.{key}", start=f"the environment variable {name} is '{value}'"):
        training_arguments(tiny_recipe(tiny), Path())
    training_arguments(tiny_recipe(tiny, training_arguments=fitting), Path(), finished=True)
    monkeypatch.setenv(name, "NO")
    training_arguments(tiny_recipe(tiny), Path())

"""What a step of training is: the gradient, the optimizer's groups, and which weights move."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from sea_pipeline.core.errors import UserError
from tests.support.tiny_runs import World, logged, tiny_recipe, tiny_trainer
from trainer.losses import equations
from trainer.model.aligned_llava import AlignedLlava, part
from trainer.training.align_trainer import AlignTrainer
from trainer.training.build import trainable

Gradients = dict[str, torch.Tensor]
STILL = {"projector": 1e-30, "logit_scale": 1e-30}
"""Learning rates that leave float32 weights as they are, so that every step is at the same place."""


class Spy(TrainerCallback):
    """Keeps what happens at an event of the Trainer."""

    def __init__(self, event: str, take: Callable[[AlignedLlava], Any]) -> None:
        self.taken: list[Any] = []
        setattr(self, event, lambda args, state, control, model, **_: self.taken.append(take(model)))


def gradients(model: AlignedLlava) -> Gradients:
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def weights(model: AlignedLlava) -> Gradients:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def stepped(tiny: World, out: Path, **changes: Any) -> tuple[AlignTrainer, list[Gradients]]:
    """A trainer after its run, with the gradients of every step, not clipped."""
    arguments = {"max_grad_norm": 0.0, "save_strategy": "no"} | changes.pop("training_arguments", {})
    trainer = tiny_trainer(tiny_recipe(tiny, training_arguments=arguments, **changes), out)
    spy = Spy("on_pre_optimizer_step", gradients)
    trainer.add_callback(spy)
    trainer.train()
    return trainer, spy.taken


def moved(before: Gradients, after: Gradients) -> set[str]:
    """The parts of which a weight has changed."""
    return {part(name) for name, value in after.items() if not torch.equal(value, before[name])}


def close(ours: Gradients, theirs: Gradients) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-7, msg=lambda text, name=name: name + text)


def written_out(trainer: AlignTrainer, start: int, micro: int, count: int) -> Gradients:
    """The gradient of Eq. 11 of `count` samples from the order's `start` on, term by term from the documentation."""
    recipe, model = trainer.recipe, trainer.model
    order = list(trainer._get_train_sampler())
    batches = [order[at : min(at + micro, start + count)] for at in range(start, start + count, micro)]
    given = [trainer.data_collator([trainer.data[index] for index in batch]) for batch in batches]
    tokens = sum(len(batch["targets"]) for batch in given)
    model.zero_grad()
    for batch in given:
        found = model(**batch)
        share = len(given) * len(batch["targets"]) if recipe.loss.norm == "batch" else tokens
        loss = recipe.loss.lm * found["lm"] / share
        if "sea" in found:
            loss = loss + recipe.loss.sea.weight * found["sea"] / len(given)
        loss.backward()
    return gradients(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accumulation", "micro", "norm"), [(1, 8, "token"), (2, 4, "batch"), (4, 2, "token"), (3, 4, "batch")]
)
def test_gradients_under_accumulation(accumulation: int, micro: int, norm: str, tiny: World, tmp_path: Path) -> None:
    """The last step of an epoch holds fewer micro-batches: 12 samples are 8 + 4, and 1 x 8 ends with a batch of 4."""
    arguments = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": micro}
    arguments |= {"max_steps": -1, "num_train_epochs": 1, "warmup_steps": 0}
    loss = {"lm": 0.7, "norm": norm, "sea": {"weight": 3.0}}
    trainer, found = stepped(tiny, tmp_path, loss=loss, learning_rates=STILL, training_arguments=arguments)
    step = accumulation * micro
    assert len(found) == -(-12 // step)
    for number, ours in enumerate(found):
        start = number * step
        close(ours, written_out(trainer, start, micro, min(step, 12 - start)))


@pytest.mark.slow
@pytest.mark.parametrize("clip", [0, 0.05])
def test_a_step_is_as_long_as_the_gradient_unless_it_is_clipped(clip: float, tiny: World, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"max_grad_norm": clip, "optim": "sgd", "lr_scheduler_type": "constant"}
    arguments |= {"warmup_steps": 0, "max_steps": 1, "save_strategy": "no"}
    rates = {"projector": 0.1, "llm": 0.1}
    trainer = tiny_trainer(tiny_recipe(tiny, learning_rates=rates, training_arguments=arguments), tmp_path)
    before = weights(trainer.model)
    trainer.train()
    steps = [(value - before[name]).double().norm() / 0.1 for name, value in weights(trainer.model).items()]
    (line,) = logged(tmp_path)
    assert line["grad_norm"] > 0.5, "of the gradient as it was"
    assert float(torch.stack(steps).norm()) == pytest.approx(clip or line["grad_norm"], rel=1e-3)


def test_each_part_has_its_learning_rate(tiny: World, tmp_path: Path) -> None:
    rates = {"projector": 1e-3, "llm": 2e-5, "vision": 2e-6, "logit_scale": 5e-2}
    recipe = tiny_recipe(tiny, learning_rates=rates, training_arguments={"weight_decay": 0.1})
    trainer = tiny_trainer(recipe, tmp_path)
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    seen: dict[str, tuple[float, float]] = {}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            assert names[parameter] not in seen
            seen[names[parameter]] = group["lr"], group["weight_decay"]
    assert seen.keys() == {name for name, one in trainer.model.named_parameters() if one.requires_grad}
    by_part = {**rates, "alignment": 5e-2}
    for name, (rate, decay) in seen.items():
        assert rate == by_part[part(name)], name
        plain = name.endswith("bias") or "norm" in name or "log_scale" in name
        assert decay == (0.0 if plain else 0.1), name
    assert seen["sea_term.log_scale"] == (5e-2, 0.0)


def test_the_temperature_has_the_projector_s_rate_where_none_is_given(tiny: World, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_recipe(tiny, learning_rates={"projector": 3e-4}), tmp_path)
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {3e-4}
    fixed = tiny_recipe(tiny, loss={"sea": {"logit_scale_learnable": False, "logit_scale_init": 2.0}})
    model = tiny_trainer(fixed, tmp_path).model
    assert not model.sea_term.log_scale.requires_grad
    assert float(model.sea_term.log_scale) == 2.0


@pytest.mark.slow
def test_what_trains_moves_and_nothing_else(tiny: World, tmp_path: Path) -> None:
    """With a frozen LLM and tower: `model/test_save.py`."""
    rates = {"llm": 1e-3, "vision": 1e-3}
    recipe = tiny_recipe(tiny, learning_rates=rates, training_arguments={"max_steps": 3, "save_strategy": "no"})
    trainer = tiny_trainer(recipe, tmp_path)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert moved(before, after) == {"projector", "alignment", "llm", "vision"}
    still = {name for name, value in after.items() if torch.equal(value, before[name])}
    table = trainable(trainer.model, recipe)
    for name in ("projector", "vision", "llm", "alignment"):
        total, trains, rate = table[name]
        sizes = {key: value.numel() for key, value in before.items() if part(key) == name}
        assert total == sum(sizes.values())
        assert trains == sum(size for key, size in sizes.items() if key not in still)
        assert rate is not None
    # Feature layer -2 of three layers: the last one and the norm behind it are not reached.
    unreached = {name for name in after if "layers.2." in name and part(name) == "vision"}
    unreached |= {name for name in after if "post_layernorm" in name}
    assert len(unreached) > 10
    assert still == unreached
    assert {name for name, one in trainer.model.named_parameters() if not one.requires_grad} == unreached


@pytest.mark.slow
@pytest.mark.parametrize("term", ["sea", "lm"])
def test_a_loss_that_is_not_finite_stops_before_the_weights_move(
    term: str, tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second micro-batch of the third step."""
    arguments = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "save_steps": 2}
    trainer = tiny_trainer(tiny_recipe(tiny, training_arguments=arguments), tmp_path)
    kept = Spy("on_step_end", weights)
    trainer.add_callback(kept)
    calls: list[int] = []
    real = equations.sea if term == "sea" else AlignedLlava._language_loss

    def bad(*given: Any) -> torch.Tensor:
        calls.append(1)
        return real(*given) * (float("nan") if len(calls) == 6 else 1)

    if term == "sea":
        monkeypatch.setattr(equations, "sea", bad)
    else:
        monkeypatch.setattr(AlignedLlava, "_language_loss", bad)
    with pytest.raises(UserError) as stopped:
        trainer.train()
    order = list(trainer._get_train_sampler())
    names = ", ".join(repr(trainer.data.rows[row]["id"]) for row in order[10:12])
    assert str(stopped.value).startswith(f"step 3: loss.{term} is nan (samples {names}, …); stopped before the")
    assert str(stopped.value).endswith("checkpoint-2 is kept")
    assert len(kept.taken) == 2
    now = weights(trainer.model)
    assert all(torch.equal(value, now[name]) for name, value in kept.taken[-1].items())


def test_a_batch_of_text_alone_gives_the_projector_a_zero_gradient(tiny: World, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_recipe(tiny, learning_rates={"llm": 1e-3}), tmp_path)
    batch = trainer.data_collator([trainer.data[2]])
    assert "pixel_values" not in batch
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(trainer.model, batch, torch.tensor(len(batch["targets"])))
    found = gradients(trainer.model)
    projector = [value for name, value in found.items() if part(name) == "projector"]
    assert len(projector) == 4
    assert not any(value.any() for value in projector)
    assert all(value.any() for name, value in found.items() if "lm_head" in name)


@pytest.mark.slow
def test_a_run_of_text_and_pictures_one_at_a_time(tiny: World, tmp_path: Path) -> None:
    arguments = {"per_device_train_batch_size": 1, "max_steps": 12, "save_strategy": "no"}
    loss = {"sea": {"weight": "auto"}, "measure_every": 1}
    tiny_trainer(tiny_recipe(tiny, loss=loss, training_arguments=arguments), tmp_path).train()
    lines = logged(tmp_path)
    assert len(lines) == 12
    (text,) = (line for line in lines if "loss_sea" not in line)
    assert "sea_pairs" not in text
    assert "grad_norm_lm" not in text
    assert text["loss_lm"] > 0

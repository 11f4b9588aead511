"""LoRA: what trains, what the model folder holds, what BASIC sees of it. Killed ones: `training/test_resume.py`."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sea_pipeline.core.errors import UserError
from tests.support.refused import refused
from tests.support.run_values import EVEN, tensors
from tests.support.tiny_models import LAID_OUT, tiny_model
from tests.support.tiny_runs import FinishedRuns, World, tiny_recipe, tiny_trainer
from trainer.model.fsdp import state_of, whole_state
from trainer.model.load import load_model, open_model_folder
from trainer.model.lora import add_adapters, merge_adapters
from trainer.model.terms import basic_term
from trainer.recipes.recipe import Lora, Recipe
from trainer.training.build import trainable
from trainer.training.run import train

LORA: dict[str, Any] = {
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
    "learning_rates": {"llm": 1e-2},
    "loss": {"sea": {"weight": "auto"}, "das": {"weight": 1.0}, "sds": {"weight": 0.01}, "measure_every": 2},
}


def loaded(model: Path, **changes: Any) -> Any:
    recipe = Recipe.model_validate(
        {"model": str(model), "learning_rates": {"llm": 1e-2}, "lora": {"rank": 4, "alpha": 8}} | changes
    )
    return load_model(open_model_folder(model), recipe)


def stirred(model: Any) -> Any:
    """B is no longer 0."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def merged(model: Any, lora: Lora, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Its weights by the names of a stock model."""
    state = whole_state(model, list(state_of(model)))
    merge_adapters(state, {}, lora, dtype)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("llm", ["llama", "gemma", "phi3"])
def test_adapters_start_as_nothing_and_merge_into_what_they_were(llm: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", llm=llm)
    plain = load_model(open_model_folder(folder), Recipe(model=folder)).eval()
    model = loaded(folder).eval()
    ids = torch.arange(40).unsqueeze(0)
    before = plain(input_ids=ids).logits
    assert torch.equal(model(input_ids=ids).logits, before)
    adapted = stirred(model)(input_ids=ids).logits
    assert not torch.allclose(adapted, before, atol=1e-2)
    state = merged(model, Lora(rank=4, alpha=8), torch.float32)
    assert state.keys() == state_of(plain).keys()
    plain.load_state_dict(state, strict=False)  # tied names come once
    torch.testing.assert_close(plain(input_ids=ids).logits, adapted, atol=1e-5, rtol=1e-4)


def test_the_merged_weight_is_its_equation(tiny: World) -> None:
    """W + (alpha / rank) B A in float64, to the rounding of float32, and then to that of bfloat16, once."""
    model = stirred(loaded(tiny.model, lora={"rank": 4, "alpha": 12}))
    name = "model.language_model.layers.1.mlp.down_proj"
    layer = model.get_submodule(name)
    a, b = (dict(layer.named_parameters())[f"lora_{one}.default.weight"].double() for one in "AB")
    wanted = (layer.base_layer.weight.double() + 12 / 4 * (b @ a)).detach()
    found = merged(model, Lora(rank=4, alpha=12), torch.bfloat16)[f"{name}.weight"]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, atol=1e-7 * float(wanted.abs().max()), rtol=1.01 * 2**-8)


def test_adapters_are_drawn_from_the_seed_alone(tiny: World) -> None:
    before = torch.get_rng_state()
    first, again, other = (loaded(tiny.model, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    name = "model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_what_trains(tiny: World, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_recipe(tiny, **LORA), tmp_path / "out")
    parts = trainable(trainer.model, trainer.recipe)  # type: ignore[arg-type]
    names = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}  # type: ignore[union-attr]
    # 2 layers of q (32 -> 32), k and v (32 -> 16), o, gate and up (32 -> 48), down: rank * (in + out) each
    adapters = 2 * 4 * (64 + 48 + 48 + 64 + 80 + 80 + 80)
    assert parts["lora"] == (adapters, adapters, 1e-2)
    assert parts["llm"][1:] == (0, None)
    assert parts["projector"][1] == parts["projector"][0]
    assert all(".lora_" in name or "projector" in name or "sea_term" in name for name in names)
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_targets_by_name(tiny: World) -> None:
    model = loaded(tiny.model, lora={"rank": 4, "targets": ["q_proj", "v_proj"]})
    trained = {name.split(".")[-4] for name, parameter in model.named_parameters() if ".lora_" in name}
    assert trained == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match=r"lora\.targets: the LLM has no linear layer 'w_q'; expected some of .*q_proj"):
        loaded(tiny.model, lora={"targets": ["w_q"]})


class Router(nn.Linear):
    """As Phi-MoE's and Llama 4's: a linear layer that gives more than W x."""

    def forward(self, input: torch.Tensor) -> Any:
        return super().forward(input), input


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_routers_get_no_adapters(tiny: World, targets: Any) -> None:
    llm = load_model(open_model_folder(tiny.model), Recipe(model=tiny.model)).model.language_model
    llm.layers[0].mlp.router = Router(8, 4)
    add_adapters(llm, Lora(rank=4, targets=targets), 0)
    adapted = {name.split(".")[-4] for name, _ in llm.named_parameters() if ".lora_A." in name}
    assert "q_proj" in adapted
    assert "router" not in adapted
    with pytest.raises(UserError, match=r"no linear layer 'router'"):
        add_adapters(llm, Lora(targets=("router",)), 0)


@pytest.mark.slow
def test_basic_and_sea_reach_the_projector_alone_and_see_the_adapted_llm(tiny: World, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_recipe(tiny, **LORA), tmp_path / "out")
    model: Any = stirred(trainer.model).train()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in (0, 1, 3)])
    for term in ("sea", "das", "sds"):
        model.zero_grad()
        model(**batch)[term].backward()
        reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert {name for name in reached if "sea_term" not in name} == {
            f"model.multi_modal_projector.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")
        }
    model.zero_grad()
    model(**batch)["lm"].backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if ".lora_" in name)

    model.eval()
    adapted = model(**batch)
    plain = load_model(
        trainer_folder := open_model_folder(tiny.model), trainer.recipe.model_copy(update={"lora": None})
    )
    plain.basic_term = basic_term(plain, trainer_folder, trainer.recipe, ["das", "sds"])
    assert not torch.allclose(plain.eval()(**batch)["das"], adapted["das"], rtol=1e-3), "the teacher is the adapted LLM"
    plain.load_state_dict(merged(model, trainer.recipe.lora, torch.float32), strict=False)
    stock = plain(**batch)
    torch.testing.assert_close(adapted["das"], stock["das"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(adapted["refined_norm"], stock["refined_norm"], rtol=1e-4, atol=1e-6)


def test_a_run_leaves_a_stock_folder(tiny: World, finished: FinishedRuns) -> None:
    before, after = tensors(tiny.model), tensors(finished(tiny_recipe(tiny, **LORA)) / "model")
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    linear = {name for name in before if name.endswith("_proj.weight") and "language_model" in name}
    assert changed == linear | {name for name in before if "projector" in name}
    assert len(linear) == 14


@pytest.mark.slow
@pytest.mark.parametrize("llm", ["llama", *LAID_OUT])
def test_adapters_are_added_to_the_weights_in_the_folder(llm: str, tiny: World, tmp_path: Path) -> None:
    """Not to those that the LLM computed with, of which bfloat16 has cut off half of the digits."""
    changes = {"learning_rates": {"llm": 1e-9}, "frozen_dtype": "bfloat16"}
    changes |= {"loss": {}} if llm in LAID_OUT else {}
    start = tiny_model(tmp_path / "model", llm=llm)
    recipe = tiny_recipe(tiny, model=str(start), **LORA | changes, training_arguments={"max_steps": 2})
    before, after = tensors(start), tensors(train(recipe, tmp_path / "out").model)
    assert after.keys() == before.keys()
    for name in before:
        if "projector" not in name:
            torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(tiny: World, tmp_path: Path) -> None:
    ends = []
    for checkpointing in (False, True):
        arguments = {"max_steps": 3, "activation_checkpointing": checkpointing} | EVEN
        recipe = tiny_recipe(tiny, **{**LORA, "lora": {"rank": 4, "dropout": 0}}, training_arguments=arguments)
        ends.append(tensors(train(recipe, tmp_path / str(checkpointing)).model))
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_without_peft(tiny: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with refused(match=r"'peft' cannot be imported .* pip install .*\[lora\]'"):
        loaded(tiny.model)


@pytest.mark.parametrize("changes", [{"learning_rates": {"llm": None}}, {"loss": {"lm": 0, "sea": {"weight": 1}}}])
def test_adapters_need_a_rate_and_the_language_loss(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"lora: its adapters train with the LLM; set learning_rates\.llm"):
        Recipe.model_validate({"lora": {}} | changes)


def test_a_recipe_without_what_is_new_is_the_run_that_it_was(tiny: World, finished: FinishedRuns) -> None:
    """Runs begun before LoRA and the temperature of L_sds were there go on."""
    arguments = {"max_steps": 2}
    out = finished(tiny_recipe(tiny, training_arguments=arguments))
    fields = json.loads((out / "run.json").read_text())
    assert "lora" not in fields["fields"]["recipe"]
    assert "temperature" not in fields["fields"]["recipe"]["loss"]["sds"]
    with pytest.raises(UserError, match=r": loss\.sds\.temperature: 1\.0 there, 2\.0 asked for"):
        train(tiny_recipe(tiny, training_arguments=arguments, loss={"sds": {"temperature": 2.0}}), out)

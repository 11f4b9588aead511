"""BASIC inside a training step: its terms beside the paper written out, and whom their gradient reaches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from tests.support.tiny_models import tiny_llm, tiny_vision
from tests.support.tiny_runs import World, logged, tiny_recipe, tiny_trainer
from trainer.losses.embeddings import input_scale
from trainer.model.aligned_llava import part
from trainer.model.assemble import init_model
from trainer.model.load import load_model, open_model_folder
from trainer.model.terms import basic_term, lens_of
from trainer.recipes.recipe import Recipe
from trainer.training.align_trainer import AlignTrainer
from trainer.training.run import train

BOTH: dict[str, Any] = {"lm": 1, "sea": {"weight": 0}, "das": {"weight": 1}, "sds": {"weight": 0.01}}


@pytest.fixture
def make(tiny: World, deep: Path, tmp_path: Path) -> Callable[..., AlignTrainer]:
    """A trainer with both of BASIC's terms; `changes` go into the recipe."""

    def made(**changes: Any) -> AlignTrainer:
        loss = BOTH | changes.pop("loss", {})
        return tiny_trainer(tiny_recipe(tiny, model=str(deep), loss=loss, **changes), tmp_path / "run")

    return made


def batch_of(trainer: AlignTrainer, rows: list[int]) -> dict[str, Any]:
    return dict(trainer.data_collator([trainer.data[row] for row in rows]))


def written_out(
    trainer: AlignTrainer,
    batch: dict[str, Any],
    weights: list[float],
    *,
    equal: bool = False,
    prompt: bool = False,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 4 to 7 loop by loop in float64, from the stock model's eager attention; with a graph to the projector."""
    ours = trainer.model
    model = LlavaForConditionalGeneration.from_pretrained(
        ours.config.name_or_path or trainer.recipe.model, attn_implementation="eager", dtype=torch.float64
    )
    model.load_state_dict(ours.state_dict())
    model.double()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    kept = {name: batch[name] for name in ("input_ids", "attention_mask")} | {
        "pixel_values": batch["pixel_values"].double()
    }
    out = model(**kept, output_hidden_states=True, output_attentions=True)
    visual = model.model.multi_modal_projector(ours.double().tower_output(kept["pixel_values"]))
    ours.float()
    embeddings = model.get_input_embeddings().weight.detach()[: trainer_vocabulary(trainer)]
    trained = torch.zeros_like(ids, dtype=torch.bool).flatten()
    trained[batch["predict"] + 1] = True
    trained = trained.view_as(ids)
    das, sds, image, samples = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0, 0
    for sample in range(len(ids)):
        places = (ids[sample] == model.config.image_token_id).nonzero().flatten()
        count = len(places) // visual.shape[1]
        samples += bool(count)
        for own in places.split(visual.shape[1]) if count else ():
            refined = sum(w * out.hidden_states[i + 1][sample, own] for i, w in enumerate(weights)).detach()
            attention = torch.zeros(len(own), dtype=torch.float64)
            for layer in range(len(weights)):
                for row in range(ids.shape[1]):
                    text = mask[sample, row] and row not in places and not (prompt and trained[sample, row])
                    if text:
                        attention += out.attentions[layer][sample, :, row, own].double().mean(0).detach()
            a = torch.full_like(attention, 1 / len(own)) if equal else attention / attention.sum()
            v = visual[image]
            chord = v / v.norm(dim=-1, keepdim=True) - refined / refined.norm(dim=-1, keepdim=True)
            das = das + (a * (chord**2).sum(-1)).sum() / count
            log_p, log_q = ((x @ embeddings.T / temperature).log_softmax(-1) for x in (refined, v))
            sds = sds + (a * (log_p.exp() * (log_p - log_q)).sum(-1)).sum() / count
            image += 1
    return das / samples, sds / samples


def are_written_out(trainer: AlignTrainer, batch: dict[str, Any], weights: list[float], **how: Any) -> None:
    given = trainer.model(**batch)
    assert set(given) >= {"lm", "das", "sds", "visual_norm", "refined_norm"}
    for name, value in zip(("das", "sds"), written_out(trainer, batch, weights, **how), strict=True):
        torch.testing.assert_close(given[name].double(), value.detach(), rtol=2e-5, atol=1e-7)


def trainer_vocabulary(trainer: AlignTrainer) -> int:
    return json.loads((Path(str(trainer.recipe.model)) / "alignment.json").read_text())["vocabulary"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("basic", "weights", "how"),
    [
        ({}, [0.2, 0.8], {}),
        ({"layer_weights": "const", "layers": 3}, [1 / 3] * 3, {}),
        ({"layer_weights": "dec"}, [0.8, 0.2], {"equal": True, "degree": "equal"}),
        ({"text": "prompt", "layers": 1}, [1.0], {"prompt": True}),
        ({}, [0.2, 0.8], {"temperature": 3.0}),
    ],
)
def test_the_terms_of_a_step_are_the_paper_s(
    make: Callable[..., AlignTrainer], basic: dict[str, Any], weights: list[float], how: dict[str, Any]
) -> None:
    degree = {"degree": how.pop("degree")} if "degree" in how else {}
    sds = BOTH["sds"] | {name: how[name] for name in ("temperature",) if name in how}
    trainer = make(loss={"basic": basic | degree, "sds": sds})
    batch = batch_of(trainer, [0, 1, 2, 3, 5])  # two turns, and a text without an image, among them
    are_written_out(trainer, batch, weights, **how)


@pytest.mark.slow
def test_several_images_of_a_sample_share_its_weight(
    make: Callable[..., AlignTrainer], tiny: World, tmp_path: Path
) -> None:
    records = json.loads(tiny.data.read_text())
    first = records[0] | {"image": [records[0]["image"], records[1]["image"]]}
    first["conversations"][0]["value"] = "<image>\nand\n<image>\nWhat do you see?"
    (tmp_path / "two.json").write_text(json.dumps([first, records[3]]))
    trainer = make(data={"train": str(tmp_path / "two.json")})
    batch = batch_of(trainer, [0, 1])
    assert len(batch["pixel_values"]) == 3
    are_written_out(trainer, batch, [0.2, 0.8])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rates", "checkpointing"),
    [({}, False), ({"llm": 1e-3}, True), ({"llm": 1e-3, "vision": 1e-3}, False), ({"llm": 1e-3, "vision": 1e-3}, True)],
    ids=["stage 1", "stage 2", "with the tower", "with the tower, checkpointing"],
)
def test_only_the_projector_gets_basic_s_gradient(
    make: Callable[..., AlignTrainer], rates: dict[str, float], checkpointing: bool
) -> None:
    trainer = make(learning_rates=rates)
    model = trainer.model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    given = model(**batch_of(trainer, [0, 1, 2, 3]))
    (given["das"] + given["sds"]).backward()
    reached = {part(name) for name, one in model.named_parameters() if one.grad is not None and bool(one.grad.any())}
    assert reached == {"projector"}
    model.zero_grad()
    model(**batch_of(trainer, [0, 1, 2, 3]))["lm"].backward()  # what trains would notice
    reached = {part(name) for name, one in model.named_parameters() if one.grad is not None and bool(one.grad.any())}
    assert reached == {"projector", *rates}


def test_the_gradient_is_the_paper_s(make: Callable[..., AlignTrainer]) -> None:
    trainer = make()
    batch = batch_of(trainer, [0, 1, 3])
    given = trainer.model(**batch)
    found = torch.autograd.grad(
        given["das"] + given["sds"], list(trainer.model.model.multi_modal_projector.parameters())
    )
    held: list[torch.nn.Parameter] = []
    hook = torch.nn.modules.module.register_module_forward_hook(  # the stock model's projector, made inside
        lambda module, _, __: (
            held.extend(module.parameters()) if type(module).__name__ == "LlavaMultiModalProjector" else None
        )
    )
    try:
        das, sds = written_out(trainer, batch, [0.2, 0.8])
    finally:
        hook.remove()
    expected = torch.autograd.grad(das + sds, held[-4:])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-6)


def test_a_batch_without_images_has_no_term(make: Callable[..., AlignTrainer]) -> None:
    trainer = make()
    given = trainer.model(**batch_of(trainer, [2]))
    assert not {"das", "sds"} & set(given)
    (given["lm"] + given["nothing"]).backward()


@pytest.mark.slow
def test_a_run_logs_the_terms_and_ends(tiny: World, deep: Path, tmp_path: Path) -> None:
    terms = {"das": {"weight": "auto", "ratio": 0.2}, "sds": {"weight": 0.01}, "sea": {"weight": "auto"}}
    recipe = tiny_recipe(tiny, model=str(deep), loss=terms | {"measure_every": 1})
    run = train(recipe, tmp_path / "out")
    lines = logged(tmp_path / "out")
    for line in lines:
        assert line["grad_ratio_das"] > 0
        assert line["refined_norm"] > 0
    assert lines[0]["loss"] == pytest.approx(
        lines[0]["loss_lm"]
        + sum(  # the weights of the first step
            weight * lines[0][f"loss_{name}"] for name, weight in (("sea", 1), ("das", 1), ("sds", 0.01))
        ),
        rel=1e-4,
    )
    assert lines[0]["grad_ratio_das"] == pytest.approx(0.2, rel=1e-3)
    assert json.loads((run.model / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]


def test_switched_off_it_costs_nothing(tiny: World, tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_recipe(tiny), tmp_path / "run")
    assert trainer.model.basic_term is None
    assert trainer.model.config.text_config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_micro_batches_without_images_do_not_count(tiny: World, deep: Path, tmp_path: Path) -> None:
    records = json.loads(tiny.data.read_text())
    texts = [records[2] | {"id": f"text {number}"} for number in range(2)]
    gradients = {}
    for name, rows in {"mixed": [records[0], texts[0], records[1], texts[1]], "apart": [*records[:2], *texts]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        loss = BOTH | {"lm": 1e-30, "sds": {"weight": 0}}
        data = {"train": str(tmp_path / f"{name}.json")}
        recipe = tiny_recipe(tiny, model=str(deep), data=data, loss=loss, training_arguments=arguments)
        trainer = tiny_trainer(recipe, tmp_path / name)
        batches = [batch_of(trainer, [0, 1]), batch_of(trainer, [2, 3])]
        _, count = trainer.get_batch_samples(iter(batches), 2, torch.device("cpu"))
        trainer.current_gradient_accumulation_steps = 2
        trainer.create_optimizer()
        for batch in batches:
            trainer.training_step(trainer.model, batch, count)
        gradients[name] = trainer.model.model.multi_modal_projector.linear_1.weight.grad
    torch.testing.assert_close(gradients["mixed"], gradients["apart"], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("frozen", "half"), [("bfloat16", True), ("bfloat16", False), ("float32", True)])
def test_every_precision_goes_through(tiny: World, deep: Path, tmp_path: Path, frozen: str, half: bool) -> None:
    loss = BOTH | {"sea": {"weight": 1}}
    for name, lm in (("with", 1), ("without", 0)):
        terms = loss | {"lm": lm} if lm else {"lm": 0, "sea": {"weight": 1}}
        arguments = {"bf16": half, "max_steps": 2}
        recipe = tiny_recipe(tiny, model=str(deep), loss=terms, frozen_dtype=frozen, training_arguments=arguments)
        train(recipe, tmp_path / name)
        assert all(0 < line["loss"] < 100 for line in logged(tmp_path / name))


SCALE = 12.0


@pytest.mark.slow
@pytest.mark.parametrize("basic", [{}, {"lens": "ridge", "normalise": "unit"}], ids=["plain", "lens and unit"])
def test_the_factor_may_as_well_be_in_the_weights(basic: dict[str, Any], tmp_path: Path) -> None:
    """The same network has the same losses."""
    llm = tiny_llm(tmp_path / "llm", "granite", embedding_multiplier=SCALE)
    model = init_model(str(tiny_vision(tmp_path / "vision")), str(llm), tmp_path / "model")
    loss = {"das": {"weight": 1}, "sds": {"weight": 1}, "basic": basic}
    recipe = Recipe.model_validate({"model": model, "loss": loss, "learning_rates": {"projector": 1e-3}})
    as_it_is, folded = (_losses(recipe, fold=fold) for fold in (False, True))
    assert as_it_is.keys() == folded.keys() >= {"lm", "das", "sds", "visual_norm", "refined_norm", "gradient"}
    for name, value in as_it_is.items():
        torch.testing.assert_close(value, folded[name], rtol=1e-4, atol=1e-8, msg=name)


def _losses(recipe: Recipe, *, fold: bool) -> dict[str, torch.Tensor]:
    folder = open_model_folder(Path(recipe.model))
    model = load_model(folder, recipe).double().eval()
    llm, last = model.model.language_model, model.projector.linear_2
    assert input_scale(llm) == SCALE
    if fold:
        llm.embedding_multiplier = llm.config.embedding_multiplier = 1.0
        for weight in (model.get_input_embeddings().weight, last.weight, last.bias):
            weight.data *= SCALE
        assert input_scale(llm) == 1
    model.basic_term = basic_term(model, folder, recipe, ["das", "sds"], lens_of(model, folder, recipe))
    images = torch.full((1, 16), model.config.image_token_id)
    drawn = torch.Generator().manual_seed(1)
    ids = torch.cat([images, torch.randint(6, 300, (1, 20), generator=drawn)], 1)
    pixels = torch.randn(1, 3, 32, 32, generator=drawn).double()
    where = {"predict": torch.tensor([20, 21]), "targets": ids[0, 21:23], "attention_mask": torch.ones_like(ids)}
    found = model(input_ids=ids, pixel_values=pixels, **where)
    found["sds"].backward()
    assert last.weight.grad is not None
    gradient = last.weight.grad * (SCALE if fold else 1)  # w.r.t. the weight before it was folded
    kept = ("lm", "das", "sds", "visual_norm", "refined_norm")
    return {name: found[name].detach() for name in kept} | {"gradient": gradient}

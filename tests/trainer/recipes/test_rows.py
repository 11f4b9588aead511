"""Every row of the papers' tables says what its paper does; at tiny size a stage of each shape takes one step."""

import gc
from collections.abc import Callable, Iterator
from json import dumps, loads
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.support.tiny_models import tiny_llm, tiny_vision
from tests.support.tiny_runs import World, logged, tiny_trainer
from trainer.model.aligned_llava import part
from trainer.model.assemble import init_model
from trainer.recipes.paper_rows import PaperRow, named_recipes, paper_rows
from trainer.recipes.recipe import Recipe
from trainer.training.arguments import training_arguments

ROWS = paper_rows()
TOWERS = {
    "openai/clip-vit-large-patch14-336": ("clip", ""),
    "google/siglip-so400m-patch14-384": ("siglip", ""),
    "s2@1,2,3:openai/clip-vit-large-patch14-336": ("clip", "s2@1,2,3:"),
}
LLMS = {
    "lmsys/vicuna-7b-v1.5": "llama",
    "lmsys/vicuna-13b-v1.5": "llama",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama",
    "google/gemma-2b": "gemma",
    "microsoft/Phi-3-mini-4k-instruct": "phi3",
    "mistralai/Mistral-7B-v0.1": "mistral",
}
PARTS = ("projector", "llm", "vision")
NEEDS_GPUS = ("fsdp", "fsdp_config", "tf32")
DEEP = 8
"""Layers of the tiny LLM where a row names some of Vicuna-7B's 32, which are four times as many; else it has two."""


class Stepped(NamedTuple):
    """What one step did."""

    moved: dict[str, float]
    """By part, the largest change of a weight; AdamW's first step is as long as the learning rate."""
    terms: set[str]
    layers: set[str]
    """Class names of what the LLM is made of."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[PaperRow], Path]:
    """A tiny model of the families that a row names, made once for all rows that name them."""
    root = tmp_path_factory.mktemp("rows")

    def made(row: PaperRow) -> Path:
        (tower, scales), llm = TOWERS[row.vision], LLMS[row.llm]
        layers = DEEP if any(stage.loss.basic.layers for stage in row.recipes().values()) else 2
        out = root / f"{tower}{len(scales)}-{llm}{layers}"
        if not out.exists():
            parts = [root / f"{out.name}-{kind}" for kind in ("tower", "llm")]
            vision, llm_folder = tiny_vision(parts[0], tower), tiny_llm(parts[1], llm, num_hidden_layers=layers)
            init_model(f"{scales}{vision}", str(llm_folder), out)
        return out

    return made


@pytest.fixture(scope="session")
def captions(_made: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those records of the world that `plain` takes: an image, a question and an answer."""
    records = [one for one in loads(_made.data.read_text()) if "image" in one and len(one["conversations"]) == 2]
    path = tmp_path_factory.mktemp("captions") / "captions.json"
    path.write_text(dumps(records))
    return path


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """accelerate collects garbage at each start, a third of the time: among all that was ever imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def shapes() -> Iterator[tuple[str, str]]:
    """Row and stage where something comes for the first time: a model and what of it trains, or terms and their ways.

    Another number alone, such as the k of a curve, is no other shape.
    """
    seen: set[tuple[Any, ...]] = set()
    for name, row in ROWS.items():
        for stage, recipe in row.recipes().items():
            loss = recipe.loss
            ways = loss.basic.model_copy(update={"layers": bool(loss.basic.layers)}).model_dump_json()
            trained = tuple(part for part in PARTS if getattr(recipe.learning_rates, part))
            made = (TOWERS[row.vision], LLMS[row.llm], trained)
            asked = (*sorted(loss.terms()), ways, recipe.data.template, trained)
            if not {made, asked} <= seen:
                yield name, stage
            seen |= {made, asked}


def cut(recipe: Recipe, model: Path, world: World, captions: Path) -> Recipe:
    """One step, tiny parts and the tiny world; everything else as the row says."""
    said: dict[str, Any] = recipe.model_dump() | {"name": "row", "model": str(model)}
    data = captions if recipe.data.template == "plain" else world.data
    said["data"] |= {"train": str(data), "image_root": str(world.data.parent / "images"), "held_out": 0}
    said["labels"] |= {"path": said["labels"]["path"] and str(world.labels)}
    if layers := recipe.loss.basic.layers:
        said["loss"]["basic"]["layers"] = layers * DEEP // 32
    arguments = {key: value for key, value in recipe.training_arguments.items() if key not in NEEDS_GPUS}
    once = {"max_steps": 1, "warmup_steps": 0, "save_strategy": "no"}
    said["training_arguments"] = arguments | once | {"per_device_train_batch_size": 4, "dataloader_num_workers": 0}
    return Recipe.model_validate(said)


def stepped(recipe: Recipe, out: Path) -> Stepped:
    trainer = tiny_trainer(recipe, out)
    model: Any = trainer.model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer.train()
    moved: dict[str, float] = {}
    for name, value in model.named_parameters():
        change = float((value.detach() - before[name]).abs().max())
        moved[part(name)] = max(change, moved.get(part(name), 0.0))
    terms = {name.removeprefix("loss_") for name in logged(out)[0] if name.startswith("loss_")}
    return Stepped(moved, terms, {type(module).__name__ for module in model.model.language_model.modules()})


def promised(name: str, stage: str) -> tuple[set[str], dict[str, float]]:
    """What the papers say of a row's stage: the terms beside L_lm, and the rates of what trains."""
    paper, table, *rest = name.split("-")
    row = "-".join(rest)
    baseline = row.endswith("llava") or row in ("none", "no-pretraining", "tower")
    terms = {"lm"}
    if paper == "sea" and not baseline and stage == "pretrain":
        terms |= {"sea"}
    if paper == "basic" and not baseline:
        terms |= {row} if row in ("das", "sds") else {"das", "sds"}
    if stage == "pretrain":
        return terms, {"projector": 1e-3}
    tower = {"vision": 2e-6} if (paper, table) == ("sea", "table1") or row.startswith("tower") else {}
    return terms, {"projector": 2e-5, "llm": 2e-5} | tower


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), list(shapes()))
def test_a_shape_takes_one_step(
    name: str, stage: str, tiny: World, captions: Path, models: Callable[[PaperRow], Path], tmp_path: Path
) -> None:
    row = ROWS[name]
    recipe = row.recipes()[stage]
    done = stepped(cut(recipe, models(row), tiny, captions), tmp_path)
    terms, rates = promised(name, stage)
    assert done.terms == terms
    for where in PARTS:
        assert done.moved[where] == pytest.approx(rates.get(where, 0.0), rel=0.1), where
    if wrapped := recipe.training_arguments.get("fsdp_config"):
        assert set(wrapped["transformer_layer_cls_to_wrap"]) < done.layers


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_row_trains_what_its_paper_does(name: str, tiny: World, captions: Path) -> None:
    stages = ROWS[name].recipes()
    assert list(stages) == (["finetune"] if name == "sea-figure3-no-pretraining" else ["pretrain", "finetune"])
    for stage, recipe in stages.items():
        terms, rates = promised(name, stage)
        assert {"lm", *recipe.loss.terms()} == terms
        assert recipe.loss.lm == 1
        found = {part: getattr(recipe.learning_rates, part) for part in PARTS}
        assert {part: rate for part, rate in found.items() if rate} == rates
        assert cut(recipe, tiny.model, tiny, captions).loss.terms() == recipe.loss.terms()


def test_the_rows_of_an_llm_cut_the_same_layers() -> None:
    """Which are looked for in the model where one of them takes a step."""
    wrapped: dict[str, set[str]] = {}
    for row in ROWS.values():
        for recipe in row.recipes().values():
            config = recipe.training_arguments.get("fsdp_config", {})
            wrapped.setdefault(LLMS[row.llm], set()).update(config.get("transformer_layer_cls_to_wrap", ()))
    assert {len(layers) for layers in wrapped.values()} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_llavas_recipe_but_for_what_the_paper_changes(name: str) -> None:
    row = ROWS[name]
    for stage, recipe in row.recipes().items():
        arguments, loss = recipe.training_arguments, recipe.loss
        batch = 8 * arguments["per_device_train_batch_size"] * arguments.get("gradient_accumulation_steps", 1)
        assert batch == (256 if stage == "pretrain" else 128)
        assert (recipe.data.max_length, recipe.lora, recipe.teacher) == (2048, None, None)
        assert arguments["num_train_epochs"] == (
            0.1 if stage == "finetune" and name.startswith(("basic-table4", "basic-figure6")) else 1
        )
        assert arguments["max_grad_norm"] == 0
        assert recipe.data.image_aspect_ratio == ("square" if stage == "pretrain" else "pad")
        chat = "vicuna_v1" if row.llm.startswith("lmsys") else "own"
        assert recipe.data.template == ("plain" if stage == "pretrain" else chat)
        assert loss.sea.weight in (0, 1.0)
        assert loss.das.weight in (0, 1)
        assert loss.sds.weight in (0, 0.01)
        assert (loss.sea.window, loss.sea.logit_scale_init, recipe.labels.top_n) == (2, 0.0, 10)
        needs = bool(loss.sea.weight)
        assert (recipe.labels.path is not None) == needs, "labels are asked for where SEA uses them"


@pytest.mark.parametrize(
    "name", ["llava-1.5-7b", "sea-llava-1.5-7b", "basic-llava-1.5-7b", "both-llava-1.5-7b", "sea-prime"]
)
def test_the_optimizer_is_llavas(name: str) -> None:
    """What LLaVA-1.5's scripts say, and transformers' defaults where they say nothing."""
    for stage, recipe in named_recipes(name).items():
        asked = {key: value for key, value in recipe.training_arguments.items() if key not in NEEDS_GPUS}
        args = training_arguments(recipe.model_copy(update={"training_arguments": asked}), Path())
        assert args.optim.startswith("adamw_torch")
        assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon, args.weight_decay) == (0.9, 0.999, 1e-8, 0)
        assert (args.lr_scheduler_type, args.get_warmup_steps(5_198), args.num_train_epochs) == ("cosine", 156, 1)
        assert (args.max_grad_norm, args.gradient_accumulation_steps) == (0, 1)
        rates = recipe.learning_rates
        assert (rates.projector, rates.llm) == ((1e-3, None) if stage == "pretrain" else (2e-5, 2e-5))
        assert recipe.loss.norm == "batch"
        assert recipe.data.sampling == ("random" if stage == "pretrain" else "modality_length")
        assert {name: recipe.training_arguments[name] for name in ("bf16", "tf32", "activation_checkpointing")} == {
            "bf16": True, "tf32": True, "activation_checkpointing": True
        }  # fmt: skip


@pytest.mark.slow
def test_a_tenth_of_an_epoch_is_a_tenth_of_the_samples(
    tiny: World, captions: Path, models: Callable[[PaperRow], Path], tmp_path: Path
) -> None:
    """As the rows of BASIC's Table 4 and Figure 6 train on a tenth of stage 2's data."""
    row = ROWS["basic-table4-inc"]
    said = cut(row.recipes()["finetune"], models(row), tiny, captions).model_dump()
    said["training_arguments"] |= {"max_steps": -1, "per_device_train_batch_size": 1, "num_train_epochs": 0.25}
    trainer = tiny_trainer(Recipe.model_validate(said), tmp_path / "run")
    trainer.train()
    assert trainer.state.global_step == 3
    assert torch.isfinite(trainer.model.lm_head.weight).all()

"""The folder that a run leaves: a stock LLaVA, for programs that know nothing of ours."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoProcessor, GenerationConfig, LlavaForConditionalGeneration

from tests.support.other_formats import OTHER_FORMATS
from tests.support.run_values import sharded, tensors
from tests.support.tiny_models import LAID_OUT, tiny_llm, tiny_model
from tests.support.tiny_runs import FinishedRuns, World, logged, tiny_recipe
from trainer.model.assemble import init_model
from trainer.model.load import open_model_folder
from trainer.model.other_files import copy_others
from trainer.recipes.recipe import Recipe
from trainer.training.run import train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("llm", [None, 1e-3], ids=["projector", "projector and llm"])
def test_every_tensor_is_there_under_its_stock_name(llm: float | None, tiny: World, finished: FinishedRuns) -> None:
    before = tensors(tiny.model)
    model = finished(tiny_recipe(tiny, learning_rates={"llm": llm}, training_arguments={"max_steps": 2})) / "model"
    after = tensors(model)
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    expected = {name for name in before if "projector" in name or (llm and "language_model" in name)}
    assert len(expected) == (25 if llm else 4)
    assert changed == expected
    assert {name: value.dtype for name, value in after.items()} == {name: value.dtype for name, value in before.items()}
    assert {file.stat().st_mode for file in model.iterdir()} == {(tiny.model / "config.json").stat().st_mode}
    config, old = (json.loads((folder / "config.json").read_text()) for folder in (model, tiny.model))
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config == old
    assert {file.name for file in model.iterdir()} == {file.name for file in tiny.model.iterdir()}
    for name in ("tokenizer.json", "processor_config.json", "chat_template.jinja", "generation_config.json"):
        assert (model / name).read_bytes() == (tiny.model / name).read_bytes(), name


STARTS: dict[str, dict[str, Any]] = {
    "tied, bfloat16": {"llm": "gemma", "dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "linear": {"projector": "linear"},
    "sharded": {},
    "tower trains": {},
    "experts": {"llm": "mixtral"},
    "fused layers": {"llm": "hrm_text"},
}


@pytest.mark.parametrize("kind", STARTS)
def test_what_is_frozen_keeps_its_values_in_whatever_precision_it_computes(
    kind: str, tiny: World, tmp_path: Path
) -> None:
    start = tiny_model(tmp_path / "model", **STARTS[kind])
    start = sharded(start, tmp_path / "start") if kind == "sharded" else start
    recipe = tiny_recipe(
        tiny,
        model=str(start),
        frozen_dtype="bfloat16",
        learning_rates={"vision": 1e-3 if kind == "tower trains" else None},
        loss={} if STARTS[kind].get("llm") in LAID_OUT else {"das": {"weight": 1}, "measure_every": 1},
        training_arguments={"max_steps": 3, "bf16": True},
    )
    changed = changed_by(recipe, tmp_path / "out")
    projector = {f"multi_modal_projector.linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}
    projector = {name for name in projector if kind != "linear" or "linear_1" in name}
    assert changed >= projector
    assert {name for name in changed if not (kind == "tower trains" and "vision_tower" in name)} == projector


@pytest.mark.parametrize("lm", [1, 0])
def test_files_that_transformers_does_not_read_do_not_get_in(lm: float, tiny: World, tmp_path: Path) -> None:
    """Programs would take the weights of the start, in whatever format, for the trained ones."""
    start, before = Path(shutil.copytree(tiny.model, tmp_path / "start")), tensors(tiny.model)
    for name in ("model-00001-of-00002.safetensors", "model_ema.safetensors"):
        save_file({name: value + 1 for name, value in before.items()}, start / name)
    for name in ("model.safetensors.index.json", *OTHER_FORMATS):
        (start / name).parent.mkdir(exist_ok=True)
        (start / name).write_text("{}")
    recipe = tiny_recipe(tiny, model=str(start), loss={"lm": lm}, training_arguments={"max_steps": 2})
    model = train(recipe, tmp_path / "out").model
    changed = {name for name, value in tensors(model).items() if not torch.equal(value, before[name])}
    assert changed
    assert changed <= {name for name in before if "projector" in name}
    assert {file.name for file in model.iterdir()} == {file.name for file in tiny.model.iterdir()}


def test_a_file_that_is_left_out_is_not_copied(tmp_path: Path) -> None:
    """A copy of one that may only be read could not be written anew."""
    for folder in ("start", "out"):
        (tmp_path / folder).mkdir()
    for name in ("config.json", "merges.txt"):
        (tmp_path / "start" / name).write_text(name)
    copy_others(tmp_path / "start", tmp_path / "out", without=["config.json"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merges.txt"]


def test_the_packaged_tower_computes_in_bfloat16(tiny: World, tmp_path: Path) -> None:
    start = init_model("packaged", str(tiny_llm(tmp_path / "llm")), tmp_path / "model")
    recipe = tiny_recipe(
        tiny,
        model=str(start),
        labels={"transfer": True},
        frozen_dtype="bfloat16",
        training_arguments={"max_steps": 2, "bf16": True},
    )
    changed = changed_by(recipe, tmp_path / "out")
    assert changed == {name for name in tensors(start) if "multi_modal_projector" in name}


def changed_by(recipe: Recipe, out: Path) -> set[str]:
    """Trains; names the tensors with other values, in a folder that is read as the one it began with."""
    start, trained = Path(str(recipe.model)), train(recipe, out).model
    before, after = tensors(start), tensors(trained)
    assert {name: value.dtype for name, value in after.items()} == {name: value.dtype for name, value in before.items()}
    _, report = LlavaForConditionalGeneration.from_pretrained(trained, output_loading_info=True)
    assert not any(report.values()), report
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def test_few_pictures_are_learnt_by_heart(tiny: World, tmp_path: Path) -> None:
    records = [record for record in json.loads(tiny.data.read_text()) if record["id"] in ("s0", "s3", "s4", "s5")]
    (tmp_path / "four.json").write_text(json.dumps(records))
    captions = [record["conversations"][1]["value"] for record in records]
    assert len(set(captions)) == 4
    recipe = tiny_recipe(
        tiny,
        data={"train": str(tmp_path / "four.json")},
        loss={"sea": {"weight": 0.1}},
        learning_rates={"projector": 1e-2, "llm": 1e-2},
        training_arguments={"max_steps": 120, "save_strategy": "no"},
    )
    run = train(recipe, tmp_path / "out")
    assert logged(run.out)[-1]["loss_lm"] < 0.05
    processor = AutoProcessor.from_pretrained(run.model)
    model = LlavaForConditionalGeneration.from_pretrained(run.model)
    for record, caption in zip(records, captions, strict=True):
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What do you see?"}]}]
        text = processor.apply_chat_template(message, add_generation_prompt=True)
        picture = Image.open(tiny.data.parent / "images" / record["image"])
        given = processor(images=picture, text=text, return_tensors="pt")
        made = model.generate(**given, generation_config=GenerationConfig.from_pretrained(run.model), max_new_tokens=30)
        answer = processor.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer.strip() == caption
        assert made[0, -1] == open_model_folder(run.model).processor.tokenizer.eos_token_id, "it ends by itself"

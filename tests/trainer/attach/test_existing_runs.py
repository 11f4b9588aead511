"""Recipes that name an existing model: it trains, goes on after a kill, and its folder stays its family's."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from sea_pipeline.core.errors import UserError
from tests.support.refused import refused
from tests.support.run_values import copied, tensors, values, weights
from tests.support.tiny_runs import logged
from tests.trainer.attach.existing import KINDS, ExistingWorld, attached_model
from tests.trainer.attach.families import MAKERS, tiny
from trainer.attach.attached import Attached
from trainer.attach.batches import processed
from trainer.attach.folder import load_existing
from trainer.attach.rows import read_texts
from trainer.attach.run_model import AttachedModel
from trainer.data.sampler import BLANK
from trainer.training.run import train, train_stages

pytestmark = pytest.mark.usefixtures("colour_encoder")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_run_trains_goes_on_and_keeps_the_familys_form(name: str, world: ExistingWorld, tmp_path: Path) -> None:
    recipe, start = world.recipe(name), world.model(name)
    run = train(recipe, tmp_path / "whole")
    lines = logged(run.out)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert all(np.isfinite(line[f"loss_{term}"]) for term in ("lm", "sea", "das", "sds"))
        whole = line["loss_lm"] + line["loss_sea"] + line["loss_das"] + 0.01 * line["loss_sds"]
        assert line["loss"] == pytest.approx(whole, rel=1e-4)
    out = copied(run.out, tmp_path / "again", 1)
    train(recipe, out)
    assert weights(out) == weights(run.out) != {}
    assert values(out) == values(run.out)
    # The family's own form: the same files, names, dtypes; only the projector has moved.
    before, after = tensors(start), tensors(run.model)
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    projector = world.open(name).projector.strip(".").rpartition(".")[2]
    assert moved
    assert all(projector in key or "image_newline" in key for key in moved), moved
    assert {path.name for path in run.model.iterdir()} == {path.name for path in start.iterdir()}
    for file in start.iterdir():
        if file.suffix != ".safetensors":
            assert (run.model / file.name).read_bytes() == file.read_bytes(), file.name
    loaded, info = AutoModelForImageTextToText.from_pretrained(run.model, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(loaded) is type(tiny(name).model)
    AutoProcessor.from_pretrained(run.model)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_answers_alone_are_trained_by_the_familys_own_forward(name: str, world: ExistingWorld) -> None:
    """The ids that are trained are the answers with the ends of their turns, and L_lm is what the model itself says."""
    recipe = world.recipe(name)
    folder = world.open(name)
    data = world.read(folder)
    refused = {row.id for row in read_texts(world.data, folder.chat).bad}
    assert refused == ({"turns", "text"} if name == "paligemma" else set())
    samples = [data[number] for number in range(len(data))]
    batch = data.collator(0, 0)(samples)
    end = "</s>" if name == "paligemma" else "<|im_end|>"
    answers = {
        "one": f"a red patch{end}", "turns": f"green and blue{end}white{end}", "text": f"red or blue{end}",
        "two": f"one is green{end}", "last": f"The left half is magenta.{end}", "again": f"a blue one{end}",
    }  # fmt: skip
    said = folder.processor.tokenizer.decode(batch["targets"])
    assert said == "".join(answer for sample, answer in answers.items() if sample not in refused)
    model: Any = load_existing(folder, recipe).eval()
    ours = ("predict", "targets", "rows", "seed", "draws", "images")
    given = {key: each for key, each in batch.items() if key not in ours}
    labels = torch.full_like(batch["input_ids"], -100).flatten()
    labels[batch["predict"] + 1] = batch["targets"]
    with torch.no_grad():
        own = model(**given, labels=labels.view_as(batch["input_ids"])).loss
        found = attached_model(model, folder).eval()(**batch)
    assert float(found["lm"]) / len(batch["targets"]) == pytest.approx(float(own), rel=1e-5)
    assert len(found["visual"]) == len(batch["images"])


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_blank_sample_is_none(name: str, world: ExistingWorld) -> None:
    """Beside others it is left out; alone it gives what trains a gradient of zeros, if several processes need one."""
    recipe = world.recipe(name, learning_rates={"llm": 1e-3, "vision": 1e-3}, loss={"das": {}, "sds": {}})
    folder = world.open(name)
    data = world.read(folder)
    collate = data.collator(0, 0)
    alone, beside = collate([data[0]]), collate([data[0], data[BLANK]])
    assert alone.keys() == beside.keys()
    for key, value in alone.items():
        assert torch.equal(value, beside[key]) if isinstance(value, torch.Tensor) else value == beside[key], key
    vlm = load_existing(folder, recipe)
    model = AttachedModel(vlm, Attached(vlm, folder.processor, world.pictures.open(), recipe.loss, 0)).train()
    found = model(**collate([data[BLANK]] * 2))
    loss = found["lm"] + found["sea"] + found["nothing"]
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.projector.parameters())
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), key


def test_what_is_drawn_for_a_sample_is_its_own(world: ExistingWorld) -> None:
    """No other sample of its batch changes it, so several processes draw what one draws; each epoch draws anew."""
    data = world.read(world.open("llava"))
    collate = data.collator(0, 3)
    whole = collate([data[number] for number in range(len(data))])
    apart = [collate([data[number]]) for number in range(len(data))]
    assert whole["draws"] == [number for batch in apart for number in batch["draws"]]
    assert whole["seed"] == apart[0]["seed"]
    numbers = [*whole["draws"], *collate([data[len(data)]])["draws"], *(batch["seed"] for batch in apart)]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rates", "parts"),
    [
        ({}, ["deepstack_merger_list", "visual.merger"]),
        ({"projector": None, "llm": 1e-3}, ["language_model", "lm_head"]),
        ({"projector": None, "vision": 1e-3}, ["visual.blocks", "visual.patch_embed", "visual.pos_embed"]),
    ],
    ids=["projector", "llm", "vision"],
)
def test_parts_that_train_are_those_with_a_rate(rates: Any, parts: list[str], world: ExistingWorld) -> None:
    recipe = world.recipe("qwen3_vl", learning_rates=rates, loss={"sea": {}, "das": {}, "sds": {}})
    model = load_existing(world.open("qwen3_vl"), recipe)
    trains = {key for key, each in model.named_parameters() if each.requires_grad}
    assert all(any(part in key for part in parts) for key in trains)
    assert any(parts[0] in key for key in trains)


@pytest.mark.slow
def test_stages_go_on_from_the_one_before_and_move_what_has_a_rate(world: ExistingWorld, tmp_path: Path) -> None:
    first = world.recipe("llava", training_arguments={"max_steps": 1, "save_strategy": "no"})
    terms: dict[str, Any] = {"sea": {}, "das": {}, "sds": {}}
    once = {"max_steps": 1, "save_strategy": "no", "warmup_steps": 0}
    rates = {"projector": None, "llm": 1e-3}
    tune = world.recipe("llava", loss=terms, learning_rates=rates, training_arguments=once)
    runs = train_stages({"align": first, "tune": tune}, tmp_path)
    record = json.loads((tmp_path / "tune" / "run.json").read_text())
    assert record["recipe"]["model"] == {"attach": str(runs["align"].model)}
    before, after = tensors(runs["align"].model), tensors(runs["tune"].model)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if "language_model" in key or "lm_head" in key}
    gone = first.model_copy(update={"data": first.data.model_copy(update={"train": "nowhere.json"})})
    with refused("stage tune: nowhere.json: expected LLaVA's conversations"):
        train_stages({"align": first, "tune": gone}, tmp_path / "other")
    cut = first.model_copy(update={"data": first.data.model_copy(update={"max_length": 4})})
    with refused("expected its images and the beginning of an answer", start="stage tune: "):
        train_stages({"align": first, "tune": cut}, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_run_is_of_the_folders_weights_and_processor(world: ExistingWorld, tmp_path: Path) -> None:
    short = {"max_steps": 1, "save_strategy": "no"}
    mine = tmp_path / "mine"
    shutil.copytree(world.model("llava"), mine)
    train(world.recipe("llava", model={"attach": str(mine)}, training_arguments=short), tmp_path / "run")
    template = mine / "chat_template.jinja"
    template.write_text("{# other bytes, the same text #}" + template.read_text())
    with pytest.raises(UserError, match=r"mine: has changed since .*run began with it: processing.chat_template"):
        train(world.recipe("llava", model={"attach": str(mine)}, training_arguments=short), tmp_path / "run")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "lm": ({"loss": {"lm": 0, "das": {}, "sds": {}}}, "loss.lm: a model that is attached to runs whole"),
    "auto": ({"loss": {"sea": {"weight": "auto"}}}, "loss.sea.weight: auto needs gradients by term"),
    "ratio": ({"loss": {"sea": {"weight": 1, "ratio": 0.5}}}, "loss.sea.ratio: goes with weight: auto"),
    "measure": ({"loss": {"measure_every": 3}}, "loss.measure_every: gradients by term are not measured"),
    "lens": ({"loss": {"basic": {"lens": "ridge"}}}, "loss.basic.lens: is for models of sea-pipeline init"),
    "text": ({"loss": {"basic": {"text": "prompt"}}}, "loss.basic.text: prompt is for models of sea-pipeline init"),
    "teacher": ({"teacher": "x"}, "teacher: its targets have one grid"),
    "ratio of images": ({"data": {"image_aspect_ratio": "pad"}}, "data.image_aspect_ratio: the model's own processor"),
    "crop": ({"data": {"random_crop": 0.5}}, "data.random_crop: the model's own processor"),
    "features": ({"data": {"keep_features": True}}, "data.keep_features: the features of a model"),
    "sampling": ({"data": {"sampling": "modality_length"}}, "data.sampling: modality_length needs the number"),
    "template": ({"data": {"template": "plain"}}, "data.template: plain, but such a model"),
    "crops": ({"labels": {"crops": 2}}, "labels.crops: the model's own processor"),
    "kept": ({"keep_checkpoints": [1]}, "keep_checkpoints: export, which reads them"),
    "dtype": ({"frozen_dtype": "bfloat16"}, "frozen_dtype: bfloat16 next to float32 needs autocast"),
    "fsdp": ({"training_arguments": {"fsdp": True}}, "training_arguments.fsdp: is for models of sea-pipeline init"),
    "compile": ({"training_arguments": {"torch_compile": True}}, "training_arguments.torch_compile: is for models"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_by_name(name: str, world: ExistingWorld) -> None:
    changes, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        world.recipe("llava", **changes)


def test_folders_of_other_models_are_refused(world: ExistingWorld, tmp_path: Path) -> None:
    recipe = world.recipe("llava", model={"attach": str(tmp_path / "none")})
    with pytest.raises(UserError, match="there is no such folder; expected a folder of a vision-language model"):
        train(recipe, tmp_path / "run")
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="model_type is 'clip'; expected one of llava, llava_next"):
        train(world.recipe("llava", model={"attach": str(tmp_path / "clip")}), tmp_path / "run")


def test_a_sample_too_long_is_named(world: ExistingWorld) -> None:
    folder = world.open("qwen2_5_vl")
    first = world.read(folder)[0]
    ids = processed(folder.chat, [first["text"]], [first["images"]])[0]["input_ids"][0]
    # One token less cuts the end of the answer, and leaves its beginning.
    data = world.read(folder, len(ids) - 2)
    batch = data.collator(0, 0)([data[0]])
    assert folder.processor.tokenizer.decode(batch["targets"]) == "a red patch"
    short = world.read(folder, 16)
    with pytest.raises(UserError, match="sample 'one': expected its images and the beginning of an answer within"):
        short.collator(0, 0)([short[0]])

"""Folders in the forms that the hub's models have: from parts to a model that trains, and to an export that agrees."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    Dinov2Model,
    LlavaForConditionalGeneration,
    SiglipVisionModel,
)

from tests.hub_forms import LLMS, TOWERS, sentence_piece, write_form
from tests.support.initialised import LIST, load
from tests.support.paths import ROOT
from tests.support.tiny_runs import World, logged, tiny_recipe
from trainer.data.run_rows import open_conversations
from trainer.export.run import ExportSettings, export_model
from trainer.model.assemble import init_model
from trainer.model.load import load_model, open_model_folder
from trainer.model.parts import quiet
from trainer.recipes.recipe import Recipe
from trainer.training.run import train_stages

CLIP, VICUNA = "openai/clip-vit-large-patch14-336", "lmsys/vicuna-7b-v1.5"
TEXTS = [
    "A photo of a jay.",
    "What colour?\nred and 12 345 caf\u00e9s",
    "\u4e2d",
    "double  space",
    *(f"x{' ' * run}return" for run in range(3, 24)),
]


class Known(NamedTuple):
    """What is known of an LLM's form."""

    tokens: int
    """Ids that it had of its own."""
    end: str
    """Of a turn."""
    ends: set[str]
    front: str | None
    """What its tokenizer puts before a text."""
    pad: str


KNOWN = {
    VICUNA: Known(600, "</s>", {"</s>"}, "<s>", "<unk>"),
    "lmsys/vicuna-13b-v1.5": Known(600, "</s>", {"</s>"}, "<s>", "<unk>"),
    "google/gemma-2b": Known(600, "<eos>", {"<eos>"}, "<bos>", "<pad>"),
    "microsoft/Phi-3-mini-4k-instruct": Known(
        611, "<|end|>", {"<|endoftext|>", "<|assistant|>", "<|end|>"}, None, "<|endoftext|>"
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": Known(
        756, "<|eot_id|>", {"<|eot_id|>", "<|end_of_text|>"}, "<|begin_of_text|>", "<pad>"
    ),
    "mistralai/Mistral-7B-v0.1": Known(600, "</s>", {"</s>"}, "<s>", "<unk>"),
}
ALONE: dict[str, Any] = {
    "openai/clip-vit-large-patch14-336": (CLIPVisionModel, 1),
    "google/siglip-so400m-patch14-384": (SiglipVisionModel, 0),
    "facebook/dinov2-large": (Dinov2Model, 1),
    "clip-tower": (CLIPVisionModel, 1),
    "clip-tower-with-projection": (CLIPVisionModel, 1),
}
"""The class of a tower, and its tokens before the patches."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All forms, below their names."""
    root: Path = tmp_path_factory.mktemp("hub")
    for name in (*LLMS, *TOWERS):
        write_form(root, name)
    return root


def test_every_model_that_a_recipe_names_has_its_form() -> None:
    parts = yaml.safe_load((ROOT / "jobs" / "papers" / "parts.yaml").read_text())
    assert {one["llm"] for one in parts["llms"].values()} == set(LLMS) == set(KNOWN)
    assert {one["vision"].rpartition(":")[2] for one in parts["towers"].values()} < set(TOWERS)
    assert set(ALONE) == set(TOWERS)


def test_forms_are_small(hub: Path) -> None:
    for name in (*LLMS, *TOWERS):
        assert sum(file.stat().st_size for file in (hub / name).rglob("*") if file.is_file()) < 400_000, name


@pytest.mark.parametrize("name", LLMS)
@pytest.mark.usefixtures("every_text")
def test_an_llm_is_the_same_inside(hub: Path, tmp_path: Path, name: str) -> None:
    known = KNOWN[name]
    folder = init_model(str(hub / "clip-tower"), str(hub / name), tmp_path / "model", dtype="float32")
    model, processor = load(folder)
    with quiet():
        alone = AutoModelForCausalLM.from_pretrained(hub / name, dtype=torch.float32).eval()
    ids = torch.randint(3, 600, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = alone(input_ids=ids).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(model(input_ids=ids).logits[..., : known.tokens], expected[..., : known.tokens])
    assert json.loads((folder / "alignment.json").read_text())["vocabulary"] == known.tokens
    _check_text(processor.tokenizer, hub / name, known)
    ends = model.generation_config.eos_token_id
    assert {processor.tokenizer.convert_ids_to_tokens(one) for one in ends} == known.ends
    written = (folder / "config.json").read_text()
    assert not [word for word in ("auto_map", "quantization", str(hub)) if word in written]


def _check_text(tokenizer: Any, source: Path, known: Known) -> None:
    """Ids as SentencePiece or the folder's tokenizer.json gives them, and the tokens with a meaning."""
    assert (tokenizer.eos_token, tokenizer.pad_token) == (known.end, known.pad)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    front = [] if known.front is None else [tokenizer.convert_tokens_to_ids(known.front)]
    model = source / "tokenizer.model"
    for text in TEXTS:
        if model.exists():
            expected = sentence_piece.processor(model.read_bytes()).encode(text)
        else:
            expected = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == front + expected


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_is_the_same_inside(hub: Path, tmp_path: Path, name: str) -> None:
    kind, first = ALONE[name]
    folder = init_model(str(hub / name), str(hub / VICUNA), tmp_path / "model", projector="linear")
    model, processor = load(folder)
    with quiet():
        alone = kind.from_pretrained(hub / name, dtype=torch.float32).eval()
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    text = processor.apply_chat_template(LIST, add_generation_prompt=True)
    given = processor(images=Image.fromarray(noise), text=text, return_tensors="pt")
    assert (given["input_ids"] == model.config.image_token_id).sum() == 16
    features = alone(given["pixel_values"], output_hidden_states=True).hidden_states[-2][0, first:]
    visual = model(**given).image_hidden_states
    torch.testing.assert_close(visual, model.model.multi_modal_projector.linear_1(features))
    assert visual.std() > 0.05


@pytest.mark.parametrize("name", TOWERS)
def test_pixels_are_prepared_as_the_folder_says(hub: Path, tmp_path: Path, name: str) -> None:
    """In a picture of one colour, of which resizing and cutting leave every pixel the same."""
    said = json.loads((hub / name / "preprocessor_config.json").read_text())
    folder = init_model(str(hub / name), str(hub / VICUNA), tmp_path / "model")
    pixels = load(folder)[1](images=Image.new("RGB", (70, 50), (10, 130, 250)), text="<image>", return_tensors="pt")
    side = 36 if "siglip" in name else 32
    assert pixels["pixel_values"].shape == (1, 3, side, side)
    colour = (np.array([10, 130, 250]) / 255 - said["image_mean"]) / said["image_std"]
    np.testing.assert_allclose(
        pixels["pixel_values"][0].permute(1, 2, 0), np.broadcast_to(colour, (side, side, 3)), atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vision", "llm"),
    [*((CLIP, llm) for llm in LLMS if "13b" not in llm), *((tower, VICUNA) for tower in list(ALONE)[1:4])],
)
def test_both_stages_an_export_and_a_reader(hub: Path, tiny: World, tmp_path: Path, vision: str, llm: str) -> None:
    model = init_model(str(hub / vision), str(hub / llm), tmp_path / "model", dtype="bfloat16")
    recipes = _stages(tiny, model, tmp_path, "vicuna_v1" if llm == VICUNA else "own")
    runs = train_stages(recipes, tmp_path / "run")
    for name, run in runs.items():
        (line,) = logged(run.out)
        assert np.isfinite(line["loss_lm"]), name
        assert ("loss_sea" in line) == (name == "pretrain")
    _check_trained(recipes["finetune"], KNOWN[llm].end)
    out = tmp_path / "export"
    export_model(ExportSettings.of(source=runs["finetune"].out, out=out))
    with quiet():
        theirs: Any = LlavaForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(out)
    ours = load_model(open_model_folder(runs["finetune"].model), Recipe(model=runs["finetune"].model)).eval()
    text = processor.apply_chat_template(LIST, add_generation_prompt=True)
    given = processor(images=Image.open(tiny.data.parent / "images" / "00.png"), text=text, return_tensors="pt")
    torch.testing.assert_close(theirs(**given).logits, ours(**given).logits, atol=1e-4, rtol=1e-4)
    assert processor.tokenizer.encode("a red patch") == AutoTokenizer.from_pretrained(model).encode("a red patch")


def _stages(world: World, model: Path, folder: Path, template: str) -> dict[str, Recipe]:
    """One step of each stage of LLaVA, the first with SEA."""
    records = [one for one in json.loads(world.data.read_text()) if "image" in one and len(one["conversations"]) == 2]
    (folder / "captions.json").write_text(json.dumps(records))
    images = str(world.data.parent / "images")
    once: dict[str, Any] = {"max_steps": 1, "warmup_steps": 0, "save_strategy": "no"}
    captions = {"train": str(folder / "captions.json"), "image_root": images, "template": "plain"}
    talks = {"train": str(world.data), "image_root": images, "template": template}
    rates = {"projector": 1e-3, "llm": 2e-5}
    labels = {"transfer": True}  # DINOv2 sees another part of the image
    first = tiny_recipe(world, model=str(model), data=captions, labels=labels, training_arguments=once)
    second = tiny_recipe(
        world, model=str(model), data=talks, training_arguments=once, learning_rates=rates, loss={"sea": {"weight": 0}}
    )
    return {"pretrain": first, "finetune": second}


def _check_trained(recipe: Recipe, end: str) -> None:
    """Of the conversation of two turns, both answers with the end of their turn, and nothing else."""
    folder = open_model_folder(Path(str(recipe.model)))
    rows = open_conversations(recipe.data, folder).train
    (row,) = [row for row in rows if row["id"] == "s1"]
    records = json.loads(Path(recipe.data.train).read_text())
    answers = [turn["value"] for record in records if record["id"] == "s1" for turn in record["conversations"][1::2]]
    trained = [token for token, mask in zip(row["input_ids"], row["trained"], strict=True) if mask]
    said = folder.processor.tokenizer.decode(trained).split(end)
    assert [one.strip() for one in said] == [*answers, ""]

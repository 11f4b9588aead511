"""Folders in the forms that the hub's models have: from parts to a model that trains, and to an export that agrees."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.hub_forms import LLMS, NEWER_LLMS, TOWERS, sentence_piece
from tests.support.initialised import check_export, load
from tests.support.paths import ROOT
from tests.support.tiny_runs import World, logged, tiny_recipe
from trainer.data.run_rows import open_conversations
from trainer.model.assemble import init_model
from trainer.model.load import open_model_folder
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


NEWER_TOKENS = {"meta-llama/Llama-3.2-1B-Instruct": 756, "google/gemma-3-1b-it": 600}
"""Rows that are the LLM's own; of other newer ones as many as their tokenizers have ids."""


def test_every_model_that_a_recipe_names_has_its_form() -> None:
    parts = yaml.safe_load((ROOT / "jobs" / "papers" / "parts.yaml").read_text())
    assert {one["llm"] for one in parts["llms"].values()} == set(LLMS) == set(KNOWN)
    assert {one["vision"].rpartition(":")[2] for one in parts["towers"].values()} < set(TOWERS)


@pytest.mark.parametrize("name", [*LLMS, *NEWER_LLMS])
@pytest.mark.usefixtures("every_text")
def test_an_llm_is_the_same_inside(hub: Path, tmp_path: Path, name: str) -> None:
    folder = init_model(str(hub / "clip-tower"), str(hub / name), tmp_path / "model", dtype="float32")
    model, processor = load(folder)
    with quiet():
        alone = AutoModelForCausalLM.from_pretrained(hub / name, dtype=torch.float32).eval()
        own = AutoTokenizer.from_pretrained(hub / name)
    known = KNOWN[name].tokens if name in KNOWN else NEWER_TOKENS.get(name, len(own))
    assert json.loads((folder / "alignment.json").read_text())["vocabulary"] == known
    ids = torch.randint(3, known, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = alone(input_ids=ids).logits[..., :known]
    assert expected.std() > (0.5 if name in KNOWN else 0.3)
    torch.testing.assert_close(model(input_ids=ids).logits[..., :known], expected)
    rows = model.get_input_embeddings().weight
    assert len(processor.tokenizer) <= len(rows)
    assert model.config.image_token_id >= known
    assert (model.lm_head.weight is rows) == bool(alone.config.tie_word_embeddings)
    assert model.config.text_config.architectures == [type(alone).__name__]
    written = (folder / "config.json").read_text()
    assert not [word for word in ("auto_map", "quantization", str(hub)) if word in written]
    if name in NEWER_LLMS:
        assert [processor.tokenizer.encode(text) for text in TEXTS] == [own.encode(text) for text in TEXTS]
        return
    _check_text(processor.tokenizer, hub / name, KNOWN[name])
    ends = model.generation_config.eos_token_id
    assert {processor.tokenizer.convert_ids_to_tokens(one) for one in ends} == KNOWN[name].ends


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


SMALL = [llm for llm in LLMS if "13b" not in llm]


@pytest.mark.parametrize(("vision", "llm"), list(zip(TOWERS, SMALL, strict=True)))
def test_both_stages_an_export_and_a_reader(hub: Path, tiny: World, tmp_path: Path, vision: str, llm: str) -> None:
    model = init_model(str(hub / vision), str(hub / llm), tmp_path / "model", dtype="bfloat16")
    recipes = _stages(tiny, model, tmp_path, "vicuna_v1" if llm == VICUNA else "own")
    runs = train_stages(recipes, tmp_path / "run")
    for name, run in runs.items():
        (line,) = logged(run.out)
        assert np.isfinite(line["loss_lm"]), name
        assert ("loss_sea" in line) == (name == "pretrain")
    _check_trained(recipes["finetune"], KNOWN[llm].end)
    processor = check_export(runs["finetune"].out, tmp_path / "export", tiny.data.parent / "images" / "00.png")
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

"""One photo, one prompt: our model, its export in transformers 5, and its other export in transformers 4.57."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from tests.tiny_models import CHATML, LLMS, tiny_llm, tiny_vision
from tests.trainer import reading
from trainer import export
from trainer.aspect_ratio import write_image_processor
from trainer.export import ExportSettings, export_model
from trainer.init import init_model
from trainer.load import load_model, open_model_folder
from trainer.recipe import Recipe
from trainer.weights import write_weights

pytestmark = pytest.mark.timeout(400)  # the first test makes, exports and reads all of them
COMPAT4 = Path(sys.prefix) / "compat4"
"""Where `make .venv` puts transformers 4.57.6."""
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {"rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.5] * 4, "long_factor": [3.0] * 4}


class Case(NamedTuple):
    vision: str
    llm: str
    settings: dict[str, Any]
    padded: bool = False
    max_shard_size: str = "4GB"


CASES = {f"{vision}-{llm}": Case(vision, llm, {}) for vision in ("clip", "siglip") for llm in LLMS}
LLM_ALONE = [*(f"clip-{llm}" for llm in LLMS), "tied", "longrope", "several files"]
CASES["dinov2-llama"] = Case("dinov2", "llama", {})
CASES["tied"] = Case("clip", "llama", {"tie_word_embeddings": True})
CASES["several files"] = Case("clip", "llama", {}, max_shard_size="20KB")
CASES["untied gemma"] = Case("clip", "gemma", {"tie_word_embeddings": False})
CASES["llama3 rope"] = Case("clip", "llama", {"rope_parameters": LLAMA3})
CASES |= {f"{vision} padded": Case(vision, "llama", {}, padded=True) for vision in ("clip", "siglip", "dinov2")}
CASES["longrope"] = Case(
    "siglip",
    "phi3",
    {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16, "max_position_embeddings": 64},
)
SMALL_THETA = {"rope_parameters": {"rope_theta": 70.0, "rope_type": "default"}}
"""Far from the 10,000 that a reader takes who does not find it."""


class Told(NamedTuple):
    ours: dict[str, Any]
    by_5: dict[str, Any]
    by_4: dict[str, Any]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """What each reader says of each case."""
    if not COMPAT4.is_dir():
        pytest.skip("transformers 4 is not there: `make .venv` installs it")
    root = tmp_path_factory.mktemp("parity")
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(noise).save(root / "photo.png")
    for name, case in CASES.items():
        parts = root / name / "parts"
        vision = tiny_vision(parts / "vision", case.vision, initializer_range=0.3)
        llm = tiny_llm(
            parts / "llm", case.llm, template=CHATML, initializer_range=0.3, **({**SMALL_THETA, **case.settings})
        )
        model = init_model(str(vision), str(llm), root / name / "model")
        if case.padded:  # as a stage leaves it
            write_image_processor(open_model_folder(model, "pad").processor.image_processor, model)
        for compat in (5, 4):
            for kind in ("model", "llm") if name in LLM_ALONE else ("model",):
                out = root / name / f"{kind}-{compat}"
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(export, "write_weights", partial(write_weights, max_shard_size=case.max_shard_size))
                    export_model(ExportSettings.of(source=model, out=out, compat=compat, kind=kind))
                assert (len(list(out.glob("*.safetensors"))) > 3) is (name == "several files")
    by_5, by_4 = (read(root, compat) for compat in (5, 4))
    return {name: Told(ours(root / name / "model", root / "photo.png"), by_5[name], by_4[name]) for name in CASES}


def read(root: Path, compat: int) -> dict[str, Any]:
    """What a transformers says of every export for it: by case, of the whole model and of the LLM alone."""
    folders = sorted(root.glob(f"*/*-{compat}"))
    out = root / f"told-{compat}.json"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(COMPAT4)} if compat == 4 else {}
    command = [sys.executable, "-W", "ignore", reading.__file__, root / "photo.png", out, *folders]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert told["version"].startswith(f"{compat}.")
    found: dict[str, Any] = {name: {} for name in CASES}
    for folder in folders:
        found[folder.parent.name][folder.name.partition("-")[0]] = told["folders"][str(folder)]
    return found


@torch.no_grad()
def ours(model: Path, photo: Path) -> dict[str, Any]:
    """The same with our own loader and our own model."""
    folder = open_model_folder(model)
    loaded = load_model(folder, Recipe(model=model)).eval()
    tokenizer = folder.processor.tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": reading.TURNS[0][1]}], tokenize=False, add_generation_prompt=True
    )
    given = folder.processor(images=Image.open(photo), text=text, return_tensors="pt")
    ends = GenerationConfig.from_pretrained(model).eos_token_id
    ids, made = given["input_ids"], []
    while len(made) < 12 and (not made or made[-1] not in ends):  # without a cache, as nobody generates
        made.append(int(loaded(input_ids=ids, pixel_values=given["pixel_values"]).logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([made[-1:]])], 1)
    words = tokenizer(reading.WORDS, return_tensors="pt")["input_ids"]
    return {
        "ids": given["input_ids"].tolist(),
        "pixels": given["pixel_values"].flatten()[::97].tolist(),
        "logits": loaded(**given).logits[0].tolist(),
        "made": made,
        "words": words.tolist(),
        "word logits": loaded(input_ids=words).logits[0].tolist(),
    }


@pytest.mark.parametrize("name", CASES)
def test_the_same_logits_and_text(name: str, told: dict[str, Told]) -> None:
    mine = told[name].ours
    assert np.ptp(mine["logits"]) > 1, "random, but not all the same"
    for theirs in (told[name].by_5["model"], told[name].by_4["model"]):
        assert theirs["report"] == {}
        assert theirs["ids"] == mine["ids"]
        np.testing.assert_allclose(theirs["pixels"], mine["pixels"], atol=1e-5)
        np.testing.assert_allclose(theirs["logits"], mine["logits"], atol=1e-4)
        assert theirs["made"] == mine["made"]
        assert theirs["dtype"] == "torch.float32"


@pytest.mark.parametrize("vision", ["clip", "siglip", "dinov2"])
def test_bars_are_seen(vision: str, told: dict[str, Told]) -> None:
    with_bars, without = told[f"{vision} padded"].by_4["model"], told[f"{vision}-llama"].by_4["model"]
    assert np.abs(np.subtract(with_bars["pixels"], without["pixels"])).max() > 0.1
    assert np.abs(np.subtract(with_bars["logits"], without["logits"])).max() > 0.01


@pytest.mark.parametrize("name", LLM_ALONE)
def test_the_same_llm(name: str, told: dict[str, Told]) -> None:
    mine = told[name].ours
    for theirs in (told[name].by_5["llm"], told[name].by_4["llm"]):
        assert theirs["report"] == {}
        assert theirs["ids"] == mine["words"]
        np.testing.assert_allclose(theirs["logits"], mine["word logits"], atol=1e-4)
        assert theirs["type"].lower() == f"{CASES[name].llm}forcausallm"


def test_templates_and_ends(told: dict[str, Told]) -> None:
    """ChatML has no marks of its own, and its eos is not the tokenizer's."""
    for name, each in told.items():
        for theirs in (each.by_5["model"], each.by_4["model"]):
            assert theirs["same"], name
            assert theirs["answers"] == "a red patch<|im_end|>"
            assert theirs["eos"] == "<|im_end|>"

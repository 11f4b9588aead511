"""Which weights `export` writes: those that transformers reads, a head or none, a linear projector as one layer."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from tests.support.initialised import edit
from tests.support.refused import refused
from tests.support.run_values import sharded, tensors, written
from tests.support.tiny_models import tiny_model
from trainer.model.load import load_model, open_model_folder
from trainer.model.parts import quiet
from trainer.model.tensor_files import canonical, read_file
from trainer.recipes.recipe import Recipe

HEAD, EMBEDDINGS = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
IDS = torch.arange(10, 20).unsqueeze(0)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True])
def test_files_that_transformers_does_not_read_are_not_exported(shards: bool, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    before = tensors(model)
    if shards:
        model = sharded(model, tmp_path / "sharded")
    other = {name: value + 1 for name, value in before.items()} | {"base_model.lora_A.weight": torch.ones(2)}
    for name in ("adapter_model", "model-00099-of-00099", "model_ema"):
        save_file(other, model / f"{name}.safetensors")
    after = tensors(written(model, tmp_path / "out"))
    assert {canonical(name) for name in after} == before.keys()
    assert all(torch.equal(value, before[canonical(name)]) for name, value in after.items())


def with_head(model: Path, outer: bool, text: bool, head: Literal["a copy", "its own"] | None) -> Path:
    """A model folder with these flags, and without a head, with a copy of the embeddings, or with its own."""
    weights = load_file(model / "model.safetensors")
    if head is None:
        del weights[HEAD]
    elif head == "a copy":
        weights[HEAD] = weights[EMBEDDINGS].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    part = open_model_folder(model).config.text_config.to_dict() | {"tie_word_embeddings": text}
    edit(model / "config.json", tie_word_embeddings=outer, text_config=part)
    return model


def logits(kind: Any, folder: Path) -> torch.Tensor:
    with quiet(), torch.no_grad():
        loaded, report = kind.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
        found: torch.Tensor = loaded.eval()(input_ids=IDS).logits
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outer", "text", "head", "tied"),
    [
        (True, False, None, True),
        (False, True, None, True),
        (True, False, "a copy", True),
        (False, True, "a copy", True),
        (False, False, "a copy", False),
        (True, False, "its own", False),
    ],
)
def test_both_parts_of_an_exports_config_say_whether_it_holds_a_head(
    outer: bool, text: bool, head: Literal["a copy", "its own"] | None, tied: bool, tmp_path: Path
) -> None:
    """transformers 4 looks at the LLM's part alone, and transformers 5 at both."""
    model = with_head(tiny_model(tmp_path / "model"), outer, text, head)
    before = logits(LlavaForConditionalGeneration, model)
    for kind, reader in (("model", LlavaForConditionalGeneration), ("llm", AutoModelForCausalLM)):
        out = written(model, tmp_path / f"out-{kind}", kind=kind)
        config = json.loads((out / "config.json").read_text())
        assert {part["tie_word_embeddings"] for part in (config, config.get("text_config", config))} == {tied}
        assert any("lm_head" in name for name in tensors(out)) is not tied
        torch.testing.assert_close(logits(reader, out), before)


@pytest.mark.slow
def test_a_head_of_its_own_is_refused_if_the_llm_is_tied_and_the_advice_mends_that(tmp_path: Path) -> None:
    model = with_head(tiny_model(tmp_path / "model"), False, True, "its own")
    own = tensors(model)[HEAD]
    said, start = "text_config.tie_word_embeddings: true, but its weights hold a head that differs", f"{model}: its con"
    with refused(said, start=start):
        written(model, tmp_path / "out")
    for lm in (1, 0):
        recipe = Recipe.model_validate({"model": model, "loss": {"lm": lm, "sea": {"weight": 1.0}}})
        with refused(said, start=start):
            load_model(open_model_folder(model), recipe)
    part = open_model_folder(model).config.text_config.to_dict() | {"tie_word_embeddings": False}
    advised = Path(shutil.copytree(model, tmp_path / "advised"))
    edit(advised / "config.json", text_config=part)
    load_model(open_model_folder(advised), Recipe(model=advised))
    assert torch.equal(tensors(written(advised, tmp_path / "out"))[HEAD], own)


def test_a_linear_projector_is_one_layer(tmp_path: Path) -> None:
    """Ours is the first of two, exactly. A foreign one may have a second layer that is no identity."""
    model, features = tiny_model(tmp_path / "model", projector="linear"), torch.randn(5, 16)
    ours, parts = tensors(model), [f"multi_modal_projector.linear_{layer}" for layer in (1, 2)]
    stored = load_file(written(model, tmp_path / "out", kind="projector") / "mm_projector.safetensors")
    assert stored.keys() == {"model.mm_projector.weight", "model.mm_projector.bias"}
    assert all(
        torch.equal(stored[f"model.mm_projector.{name}"], ours[f"{parts[0]}.{name}"]) for name in ("weight", "bias")
    )
    ours |= {
        f"{part}.{name}": torch.randn_like(ours[f"{part}.{name}"]) for part in parts for name in ("weight", "bias")
    }
    save_file(ours, model / "model.safetensors", metadata={"format": "pt"})
    stored = load_file(written(model, tmp_path / "foreign", kind="projector") / "mm_projector.safetensors")
    wanted = features
    for part in parts:
        wanted = wanted @ ours[f"{part}.weight"].T + ours[f"{part}.bias"]
    one_layer = features @ stored["model.mm_projector.weight"].T + stored["model.mm_projector.bias"]
    torch.testing.assert_close(one_layer, wanted)


def test_a_file_that_is_there_and_cannot_be_opened_is_not_called_damaged(tmp_path: Path) -> None:
    (file := tmp_path / "trained.safetensors").mkdir()
    with refused(f"{file}: cannot be read: Is a directory"):
        read_file(file)

"""What of an LLM has no place in a LLaVA: refused before its weights are read, and in folders that others made."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
)

from sea_pipeline.core.errors import UserError
from tests.support.initialised import around, edit, load
from tests.support.refused import refused
from tests.support.tiny_models import VOCABULARY, tiny_model, tiny_tokenizer
from trainer.export.run import ExportSettings, export_model
from trainer.model.llm_weights import unread
from trainer.model.load import load_model, open_model_folder
from trainer.model.parts import quiet
from trainer.recipes.recipe import Recipe

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
TEXT = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": VOCABULARY}
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}

NO_PLACE: dict[str, tuple[str, dict[str, Any], str]] = {
    "Phi 1, 1.5 and 2": ("phi", SIZES, r"bias; found lm_head\.bias \(shape \(400,\) in the LLM, none in LLaVA\)"),
    "GPT-J": ("gptj", OLD | {"rotary_dim": 4}, r"found lm_head\.bias "),
    "CodeGen": ("codegen", OLD | {"rotary_dim": 4}, r"found lm_head\.bias "),
    "CTRL": ("ctrl", OLD | {"dff": 48} | UNTIED, r"found lm_head\.bias "),
    "XLNet": ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48} | UNTIED, r"found lm_head\.bias "),
    "layers between body and head": ("rembert", SIZES, r"found cls\.predictions\.LayerNorm\.bias and \d+ more"),
    "narrow embeddings": ("opt", SIZES | {"word_embed_proj_dim": 16} | UNTIED, r"\(400, 16\) in the LLM, \(400, 32\)"),
    "an encoder in LLaVA": ("bart", {"d_model": 32} | UNTIED, r"language_model\.encoder\..* \(shape none in the LLM"),
    "embeddings of another name": ("gpt2", OLD, r"cannot be built around this LLM: GPT2Model has no attribute"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_PLACE)
def test_an_llm_that_loses_something_is_refused_before_its_weights_are_read(name: str, tmp_path: Path) -> None:
    """There are none here: only the configuration and the tokenizer."""
    kind, sizes, message = NO_PLACE[name]
    tiny_tokenizer(source := tmp_path / "llm")
    CONFIG_MAPPING[kind](**sizes).save_pretrained(source)
    said = rf"(?:{message}).*; choose another such as Llama, Mistral, Gemma, Phi-3 or Qwen$"
    with refused(start=f"{source}: ", match=said):
        around(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("kind", ["gemma3", "gemma3n", "gemma4", "got_ocr2", "fuyu", "musicgen"])
def test_a_whole_model_is_no_llm(kind: str, tmp_path: Path) -> None:
    """transformers lists it among its causal LMs, and would load all of it."""
    tiny_tokenizer(tmp_path / "llm")
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path / "llm")
    message = rf"^{tmp_path / 'llm'}: expected an LLM alone; found the model type '{kind}', .*google/gemma-3-1b-it$"
    with pytest.raises(UserError, match=message):
        around(tmp_path / "llm", tmp_path / "model")


LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
LLAMA4 = TEXT | {"num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 64}
QWEN35 = TEXT | LINEAR | {"layer_types": ["linear_attention", "full_attention"]}


def made(kind: str, folder: Path, *, whole: bool = False, **sizes: Any) -> Path:
    """A random model of a real class with its tokenizer."""
    tiny_tokenizer(folder)
    auto: Any = AutoModelForImageTextToText if whole else AutoModelForCausalLM
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(CONFIG_MAPPING[kind](**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=3))
        for value in model.parameters():
            torch.nn.init.normal_(value, std=0.2)
        model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=ids).logits[..., :300]
    return found


@pytest.mark.parametrize("late", [["parts.check_llm"], ["parts.check_llm", "assemble.check_places"]])
def test_the_loaded_llm_and_the_written_folder_are_looked_at_too(
    late: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for check in late:
        monkeypatch.setattr(f"trainer.model.{check}", lambda *_: None)
    source = made("phi", tmp_path / "llm", **SIZES, intermediate_size=48)
    with pytest.raises(UserError, match=rf"^{source}: expected an LLM .* found .*lm_head\.bias.*; choose another"):
        around(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


GEMMA4 = TEXT | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 8}
CANNOT: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": (SIZES | UNTIED, "cannot run inside transformers' LLaVA: "),  # what it gives out lacks what LLaVA asks for
    "deepseek_v3": (TEXT | {"n_routed_experts": 4, "topk_group": 9}, "cannot run: "),  # nor by itself
    "gemma4_text": (GEMMA4 | {"num_kv_shared_layers": 0}, ".*on inputs that are no tokens, as visual ones are: "),
    "minimax": (TEXT | {"num_local_experts": 2}, "cannot generate text inside transformers' LLaVA: MiniMax uses"),
}
"""All their weights have a place. Gemma 4's smaller models look tokens up for each layer; MiniMax has its own cache."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", CANNOT)
def test_an_llm_that_cannot_take_or_describe_images_is_refused(kind: str, tmp_path: Path) -> None:
    sizes, said = CANNOT[kind]
    source = made(kind, tmp_path / "llm", **sizes)
    with refused(match=rf"^{source}: {said}.*; choose another"):
        around(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


QWEN_TOWER = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
LLAMA4_TOWER = {
    "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8, "projector_input_dim": 16, "projector_output_dim": 16, "vision_output_dim": 16,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "text", "tower"), [("qwen3_5", QWEN35, QWEN_TOWER), ("llama4", LLAMA4, LLAMA4_TOWER)])
def test_the_llm_of_a_whole_model_is_taken_if_transformers_loads_it_alone(
    kind: str, text: dict[str, Any], tower: dict[str, Any], tmp_path: Path
) -> None:
    source = made(kind, tmp_path / "llm", whole=True, text_config=text, vision_config=tower)
    model = around(source, tmp_path / "model")
    ids = torch.randint(10, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    with quiet():
        whole = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    torch.testing.assert_close(logits(load(model)[0], ids), logits(whole, ids))


ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-NeoX": ("gpt_neox", SIZES | {"intermediate_size": 48, "max_position_embeddings": 128}),
    "Falcon": ("falcon", SIZES | UNTIED),
    "BLOOM": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY} | UNTIED),
    "MPT": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": VOCABULARY} | UNTIED),
    "GPT-2": ("gpt2", OLD | UNTIED),
    "GPT-BigCode": ("gpt_bigcode", OLD | UNTIED),
    "BioGPT": ("biogpt", SIZES | {"intermediate_size": 48, "max_position_embeddings": 128}),
    "Mixtral, whose experts are one tensor in memory": ("mixtral", TEXT | {"num_local_experts": 2}),
    "Qwen3.5": ("qwen3_5_text", QWEN35),
    "Gemma, whose head is tied": ("gemma", TEXT),
    "Llama 4, whose class names another base": ("llama4_text", LLAMA4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_an_exported_llm_has_the_names_that_its_own_class_writes_and_reads(name: str, tmp_path: Path) -> None:
    kind, sizes = ALONE[name]
    source = made(kind, tmp_path / "llm", **sizes)
    model = around(source, tmp_path / "model")
    out = export_model(ExportSettings.of(source=model, out=tmp_path / "out", kind="llm")).out
    assert load_file(out / "model.safetensors").keys() == load_file(source / "model.safetensors").keys()
    ids = torch.randint(10, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    with quiet():
        before = AutoModelForCausalLM.from_pretrained(source)
        after, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    assert type(before) is type(after)
    assert torch.equal(logits(after, ids), logits(before, ids))
    whole = export_model(ExportSettings.of(source=model, out=tmp_path / "whole")).out
    torch.testing.assert_close(logits(load(whole)[0], ids), logits(before, ids))


def altered(folder: Path, **tensors: torch.Tensor | None) -> Path:
    """A model folder whose file has other tensors, or lacks them."""
    file = folder / "model.safetensors"
    state = {name: value for name, value in (load_file(file) | tensors).items() if value is not None}
    save_file(state, file, metadata={"format": "pt"})
    return folder


BIAS = {"language_model.lm_head.bias": torch.ones(VOCABULARY)}
QUERY = {"language_model.model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
NORM = {"language_model.model.layers.1.self_attn.q_norm.weight": torch.ones(8)}
TOWER = {"vision_tower.encoder.layers.0.self_attn.q_proj.lora_scale": torch.ones(1)}


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "lm"), [(BIAS, 0), (QUERY, 1), (NORM, 1), (TOWER, 0)])
def test_a_weight_without_a_place_is_no_model_to_train(extra: dict[str, torch.Tensor], lm: int, tmp_path: Path) -> None:
    folder = altered(tiny_model(tmp_path / "model"), **extra)
    recipe = Recipe.model_validate({"model": folder, "loss": {"lm": lm, "sea": {"weight": 1.0}}})
    name = next(iter(extra)).split(".", 2)[-1].removeprefix("model.")
    with refused(match=rf"^{folder}: .*{name} in its files, .* sea-pipeline init"):
        load_model(open_model_folder(folder), recipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    "unused",
    [
        {"vision_tower.head.probe": torch.ones(1)},
        {"vision_tower.embeddings.position_ids": torch.arange(17)},
        {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    ],
)
def test_what_no_model_uses_does_no_harm(unused: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = altered(tiny_model(tmp_path / "model"), **unused)
    assert unread(LlavaForConditionalGeneration, folder) == []
    for lm in (1.0, 0.0):
        recipe = Recipe.model_validate({"model": folder, "loss": {"lm": lm, "sea": {"weight": 1.0}}})
        load_model(open_model_folder(folder), recipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("model", BIAS),
        ("llm", BIAS),
        ("llm", {"language_model.model.norm.weight": None}),
        ("model", {"language_model.model.layers.1.input_layernorm.weight": torch.ones(33)}),
    ],
    ids=["more", "more in the llm", "fewer", "another shape"],
)
def test_an_export_that_its_reader_would_misread_is_refused(kind: str, change: dict[str, Any], tmp_path: Path) -> None:
    folder = altered(tiny_model(tmp_path / "model"), **change)
    with pytest.raises(UserError, match=rf"^{folder}: expected the weights that transformers reads"):
        export_model(ExportSettings.of(source=folder, out=tmp_path / "out", kind=kind))
    assert not (tmp_path / "out").exists()


BROKEN = {"more": torch.ones(1), "linear_2.bias": None, "linear_1.weight": torch.ones(3, 3)}


def test_an_exported_projector_has_the_biases_that_llavas_own_code_loads(tmp_path: Path) -> None:
    biases = {f"multi_modal_projector.linear_{number}.bias": None for number in (1, 2)}
    folder = altered(tiny_model(tmp_path / "model"), **biases)
    edit(folder / "config.json", multimodal_projector_bias=False)
    out = export_model(ExportSettings.of(source=folder, out=tmp_path / "out", kind="projector")).out
    stored = load_file(out / "mm_projector.safetensors")
    assert {name: value.tolist() for name, value in stored.items() if "bias" in name} == {
        "model.mm_projector.0.bias": [0.0] * 32, "model.mm_projector.2.bias": [0.0] * 32
    }  # fmt: skip


def test_llavas_own_code_takes_one_layer(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    edit(folder / "config.json", vision_feature_layer=[-2])
    export_model(ExportSettings.of(source=folder, out=tmp_path / "out", kind="projector"))
    edit(folder / "config.json", vision_feature_layer=[-2, -1])
    with pytest.raises(UserError, match=r"expected one vision_feature_layer, .*; found \[-2, -1\]; export without"):
        export_model(ExportSettings.of(source=folder, out=tmp_path / "more", kind="projector"))


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_an_exported_projector_is_whole(name: str, tmp_path: Path) -> None:
    folder = altered(tiny_model(tmp_path / "model"), **{f"multi_modal_projector.{name}": BROKEN[name]})
    message = rf"^{folder}: expected the projector's weights .* multi_modal_projector\.{name}; give"
    with pytest.raises(UserError, match=message):
        export_model(ExportSettings.of(source=folder, out=tmp_path / "out", kind="projector"))


def test_llavas_own_code_has_no_other_activation(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    edit(folder / "config.json", projector_hidden_act="silu")
    with pytest.raises(UserError, match=r"expected projector_hidden_act gelu or linear, .*; found 'silu'; export with"):
        export_model(ExportSettings.of(source=folder, out=tmp_path / "out", kind="projector"))
    export_model(ExportSettings.of(source=folder, out=tmp_path / "out"))


def test_an_llm_that_transformers_cannot_build_is_not_exported(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config=text | {"hidden_size": "wide"})
    with pytest.raises(UserError, match=rf"^{folder}: "):
        export_model(ExportSettings.of(source=folder, out=tmp_path / "out", kind="llm"))
    edit(folder / "config.json", text_config=text | {"hidden_act": "nonesuch"})
    with pytest.raises(UserError, match=rf"^{folder}: its export could not be read: .*nonesuch.*; give a model of"):
        export_model(ExportSettings.of(source=folder, out=tmp_path / "out", kind="llm"))
    t5 = CONFIG_MAPPING["t5gemma"]().encoder.to_dict() | {"tie_word_embeddings": False}
    edit(folder / "config.json", text_config=t5)
    with pytest.raises(UserError, match=r"expected an LLM of a type that is a causal LM .*; export with --projector"):
        export_model(ExportSettings.of(source=folder, out=tmp_path / "out", kind="llm"))


MAMBA = {"mamba_d_state": 8, "num_hidden_layers": 4}
MIXED: dict[str, dict[str, Any]] = {
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8, "use_mamba_kernels": False},
    "bamba": {"attn_layer_indices": [1, 3], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_chunk_size": 16},
}
"""LLMs whose configurations compute the kinds of their layers."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", MIXED)
def test_the_first_layers_of_an_llm_of_mixed_layers_are_what_they_were(kind: str, tmp_path: Path) -> None:
    model = around(made(kind, tmp_path / "llm", **(TEXT | MAMBA | MIXED[kind])), tmp_path / "model")
    ids = torch.randint(10, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    found = []
    for layers in (None, 2):
        whole = load_model(open_model_folder(model), Recipe(model=model), layers=layers).eval().model.language_model
        assert len(whole.layers) == (layers or 4)
        whole.layers[1].register_forward_hook(lambda _, __, output: found.append(output))
        with torch.no_grad():
            whole(input_ids=ids, use_cache=False)
    first, second = (output[0] if isinstance(output, tuple) else output for output in found)
    assert torch.equal(first, second)
    recipe = Recipe.model_validate({"model": model, "loss": {"lm": 0, "sea": {"weight": 1.0}}})
    assert not len(load_model(open_model_folder(model), recipe).model.language_model.layers)

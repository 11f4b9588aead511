"""Which parts and folders `init` and the check of a model folder refuse, and that a failure leaves nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from sea_pipeline.core.errors import UserError
from tests.support.initialised import around, edit
from tests.support.refused import refused
from tests.support.tiny_models import tiny_llm, tiny_model, tiny_tokenizer, tiny_vision
from trainer.model.assemble import init_model
from trainer.model.folder_check import check_model_folder
from trainer.model.parts import load_llm, load_vision, quiet


def test_a_folder_of_something_else_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        check_model_folder(tmp_path)
    with pytest.raises(UserError, match=r"'llama', expected 'llava'; .* trains a model that you have; these may be "):
        check_model_folder(tiny_llm(tmp_path / "llm"))
    config = tmp_path / "llm" / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"internvl"'))
    with pytest.raises(UserError, match=r"'internvl', expected 'llava'; .* trains a model that you have$"):
        check_model_folder(tmp_path / "llm")


@pytest.mark.parametrize("parts", [("packged", "packaged"), ("s2:packged", "packaged"), ("packaged", "packged")])
def test_a_misspelt_name_gets_the_nearest_one(parts: tuple[str, str], tmp_path: Path) -> None:
    with refused("; the nearest is 'packaged'", start="packged: no such folder"):
        init_model(*parts, tmp_path / "out")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model", feature_layer=-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, "the processor gives an image 16 tokens, the tower gives 17 feat"),
        ({"image_token_index": 5}, "image_token_index = 5"),
        ({"vision_config": {"model_type": "nonesuch"}}, "its configuration or processor cannot be loaded: .*nonesuch"),
    ],
)
def test_a_config_that_does_not_fit_is_found(folder: Path, changes: dict[str, Any], message: str) -> None:
    config = check_model_folder(folder).config
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "default")
    assert config.text_config.tie_word_embeddings is False
    edit(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        check_model_folder(folder)


def test_another_token_for_an_image_is_refused_and_the_advice_mends_that(folder: Path) -> None:
    texts = {file: file.read_text() for form in ("*.json", "*.jinja") for file in folder.glob(form)}
    for file, text in texts.items():
        file.write_text(text.replace("<image>", "<|image|>"))
    with refused("token for an image is '<|image|>'; expected '<image>'", start=f"{folder}: "):
        check_model_folder(folder)
    for file in texts:
        file.write_text(file.read_text().replace("<|image|>", "<image>"))
    check_model_folder(folder)


def test_pixels_that_are_not_square_are_refused(folder: Path) -> None:
    said = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    edit(folder / "processor_config.json", image_processor=said | {"crop_size": {"height": 32, "width": 64}})
    with refused("landscape (32, 64) and a portrait (32, 64) pixels", start=f"{folder}: "):
        check_model_folder(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_damaged_file_is_a_line_that_names_the_folder(folder: Path, name: str) -> None:
    for text in ("{", "[]"):
        (folder / name).write_text(text)
        with refused(start=str(folder / name if name == "config.json" else folder)):
            check_model_folder(folder)


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="expected a new or an empty folder"):
        tiny_model(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["notes.txt"]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise UserError("no")

    monkeypatch.setattr("trainer.model.assemble.check_model_folder", fail)
    with pytest.raises(UserError, match="no"):
        tiny_model(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model-parts"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vision", "llm", "message"),
    [
        ("no/such/folder", "llm", "no such folder"),
        ("someone/no-such-model", "llm", "cannot be loaded"),
        ("empty", "llm", "no config.json"),
        ("llm", "llm", "'llama' is no vision tower; expected packaged, s2:SPEC, CLIP"),
        ("s2@2,1:vision", "llm", "ascending scales"),
        ("vision", "vision", "is no causal LM"),
        ("vision", "missing.gguf", "no such file"),
        ("vision", "damaged.gguf", r"damaged\.gguf: cannot be loaded"),
        ("vision", "gemma2", "other logits than alone"),
        ("damaged", "llm", r"damaged/model.safetensors: is damaged"),
        ("incomplete", "llm", "weights are missing"),
    ],
)
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vision: str, llm: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import
    tiny_vision(Path("vision"))
    tiny_llm(Path("llm"))
    Path("empty").mkdir()
    _broken_parts()
    with refused(match=message):
        init_model(vision, llm, Path("out"))
    assert not Path("out").exists()


def _broken_parts() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    for file in (tiny_vision(Path("damaged")) / "model.safetensors", Path("damaged.gguf")):
        file.write_bytes(b"not weights")
    file = tiny_vision(Path("incomplete")) / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "layers.1" not in name}, file)
    tiny_tokenizer(Path("gemma2"))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Gemma2Config(vocab_size=400, num_hidden_layers=2, head_dim=8, final_logit_softcapping=30.0, **sizes)
    with quiet():
        Gemma2ForCausalLM(config).save_pretrained("gemma2")


@pytest.mark.slow
def test_a_head_of_its_own_is_refused_if_the_config_ties_it_and_the_advice_mends_that(tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path / "llm")
    edit(llm / "config.json", tie_word_embeddings=True)
    advice = "differs from its embeddings; give a copy of its folder whose config.json says tie_word_embeddings: false"
    with refused(advice, start=f"{llm}: its config.json says tie_word_embeddings: true"):
        around(llm, tmp_path / "out")
    edit(llm / "config.json", tie_word_embeddings=False)
    head = load_file(around(llm, tmp_path / "out") / "model.safetensors")["language_model.lm_head.weight"]
    assert torch.equal(head[:300], load_file(llm / "model.safetensors")["lm_head.weight"][:300]), "all real ids"


@pytest.mark.slow
def test_a_copy_of_the_embeddings_is_no_head_of_its_own(tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path / "llm", tie_word_embeddings=True)
    weights = load_file(llm / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, llm / "model.safetensors", metadata={"format": "pt"})
    around(llm, tmp_path / "out")


@pytest.mark.slow
def test_logits_that_are_not_finite_are_refused_by_that_name(tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path / "llm")
    weights = load_file(llm / "model.safetensors")
    weights["model.norm.weight"] *= 1e5
    weights["lm_head.weight"] *= 1e4
    save_file(weights, llm / "model.safetensors", metadata={"format": "pt"})
    with refused("its logits are not finite in float16; give --dtype bfloat16", start=f"{llm}: "):
        around(llm, tmp_path / "out", dtype="float16")
    around(llm, tmp_path / "out", dtype="bfloat16")
    weights["lm_head.weight"][0, 0] = torch.nan
    save_file(weights, llm / "model.safetensors", metadata={"format": "pt"})
    with refused("not finite in float32; its weights are damaged; copy it again", start=f"{llm}: "):
        around(llm, tmp_path / "other")


@pytest.mark.slow
def test_a_tokenizer_of_another_llm_is_refused_and_an_added_token_without_a_row_is_not(tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path / "llm", vocab_size=300)
    with refused("found 300 rows and the id 373; give the LLM with the tokenizer that", start=f"{llm}: expected a row"):
        around(llm, tmp_path / "out")
    whole = tiny_llm(tmp_path / "whole", vocab_size=374)
    tokenizer = AutoTokenizer.from_pretrained(whole)
    tokenizer.add_tokens(["<soft>"], special_tokens=True)
    tokenizer.save_pretrained(whole)
    assert json.loads((around(whole, tmp_path / "out") / "alignment.json").read_text())["vocabulary"] == 374
    tokenizer.eos_token = "<soft>"
    tokenizer.save_pretrained(whole)
    with refused("found 374 rows and the id 374; give", start=f"{whole}: "):
        around(whole, tmp_path / "other")


@pytest.mark.slow
def test_ends_that_are_no_ids_of_the_llm_are_refused(tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path / "llm")
    for ends in ("</s>", [2, 400], [2.5], True):
        edit(llm / "generation_config.json", eos_token_id=ends)
        with refused(f"to be ids below 400, the rows of the LLM's embeddings; found {ends!r}; correct it"):
            around(llm, tmp_path / "out")
    edit(llm / "generation_config.json", eos_token_id=[5, 399, -1])
    said = json.loads((around(llm, tmp_path / "out") / "generation_config.json").read_text())
    assert said["eos_token_id"] == [2, 5, 399]


@pytest.mark.slow
def test_an_llm_that_was_saved_without_its_head_is_refused_by_that_name(tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path / "llm")
    weights = load_file(llm / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, llm / "model.safetensors", metadata={"format": "pt"})
    with refused("1 weights are missing, the first is lm_head.weight; copy the folder again", start=f"{llm}: "):
        around(llm, tmp_path / "out")
    edit(llm / "config.json", architectures=["LlamaForSequenceClassification"])
    said = "saved without one, as LlamaForSequenceClassification; give the LlamaForCausalLM that it was made from"
    with refused(said, start=f"{llm}: expected an LLM with its head"):
        around(llm, tmp_path / "out")


def test_weights_of_more_layers_than_the_config_says_are_refused(tmp_path: Path) -> None:
    """Those that predict further tokens are left out, as DeepSeek-V3's."""
    llm, tower = tiny_llm(tmp_path / "llm"), tiny_vision(tmp_path / "tower")
    edit(llm / "config.json", num_hidden_layers=1)
    found = "found more, model.layers.1.input_layernorm.weight and 8 more; give the config.json that belongs to them"
    with refused(found, start=f"{llm}: expected weights of as many layers as config.json says; "):
        load_llm(str(llm), torch.float32)
    edit(llm / "config.json", num_nextn_predict_layers=1)
    assert len(load_llm(str(llm), torch.float32).model.model.layers) == 1
    edit(tower / "config.json", num_hidden_layers=2)
    with refused(start=f"{tower}: expected weights of as many layers as config.json says; found more, "):
        load_vision(str(tower), torch.float32)


@pytest.mark.parametrize("layer", [-5, 4])
def test_a_layer_that_the_tower_lacks(tmp_path: Path, layer: int) -> None:
    with pytest.raises(UserError, match=r"expected -4 to 3"):
        tiny_model(tmp_path / "model", feature_layer=layer)


def test_the_first_layer_is_written_as_transformers_takes_it(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", feature_layer=0)
    edit(model / "config.json", vision_feature_layer=0)
    with refused("takes for none; set it to -4, the same ", start=f"{model}: its vision_feature_layer is 0, "):
        check_model_folder(model)
    edit(model / "config.json", vision_feature_layer=-4)
    given = LlavaForConditionalGeneration.from_pretrained(model).get_image_features(torch.zeros(1, 3, 32, 32))
    assert given.pooler_output[0].shape[0] == check_model_folder(model).visual_tokens

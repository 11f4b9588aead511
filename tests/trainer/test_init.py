"""From parts to a folder: what is in it, that stock transformers loads it, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from sea_pipeline.errors import UserError
from tests.tiny_models import CHATML, LLMS, TOWERS, VOCABULARY, tiny_llm, tiny_model, tiny_tokenizer, tiny_vision
from trainer.init import check_model_folder, init_model
from trainer.parts import quiet
from trainer.towers import tower_grid

LIST = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image"}]}]
STRING = [{"role": "user", "content": "<image>\nWhat is it?"}]
ANSWER = [{"role": "assistant", "content": "a red square"}]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def load(folder: Path) -> tuple[Any, Any]:
    with quiet():
        return LlavaForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("vision", TOWERS)
def test_any_tower_goes_with_any_llm(tmp_path: Path, vision: str, llm: str) -> None:
    model, processor = load(tiny_model(tmp_path / "model", vision, llm))
    text = processor.apply_chat_template(LIST, add_generation_prompt=True)
    inputs = processor(images=Image.new("RGB", (40, 30), "red"), text=text, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 16
    assert model(**inputs).image_hidden_states.shape == (16, 32)
    assert tower_grid(model.config) == (4, 4)
    assert model.config.text_config.architectures == [type(model.model.language_model).__name__[:-5] + "ForCausalLM"]
    assert model.config.vision_feature_layer == -2


@pytest.mark.parametrize("llm", LLMS)
def test_the_llm_is_the_same_inside(tmp_path: Path, llm: str) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_model(tmp_path / "model", "clip", llm)
    with quiet():
        alone = AutoModelForCausalLM.from_pretrained(tmp_path / "model-parts" / "llm").eval()
    ids = torch.arange(20).unsqueeze(0)
    inside = load(folder)[0](input_ids=ids).logits
    torch.testing.assert_close(inside[..., :300], alone(input_ids=ids).logits[..., :300])


def test_stock_transformers_loads_it_without_us(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    script = f"""
import sys, torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration
model, report = LlavaForConditionalGeneration.from_pretrained({str(folder)!r}, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
processor = AutoProcessor.from_pretrained({str(folder)!r})
assert AutoTokenizer.from_pretrained({str(folder)!r}).chat_template == processor.chat_template
text = processor.apply_chat_template({LIST!r}, add_generation_prompt=True)
inputs = processor(images=Image.new("RGB", (40, 30)), text=text, return_tensors="pt")
model.generate(**inputs, max_new_tokens=3, do_sample=False)
assert not [name for name in sys.modules if name.startswith(("trainer", "sea_pipeline"))]
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_alignment_json_and_the_files(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", projector="linear", seed=3)
    parts = tmp_path / "model-parts"
    tokens = len(tiny_tokenizer(tmp_path / "tokenizer"))
    assert json.loads((folder / "alignment.json").read_text()) == {
        "version": 1,
        "vocabulary": tokens,
        "vision": str(parts / "vision"),
        "llm": str(parts / "llm"),
        "projector": "linear",
        "seed": 3,
    }
    assert sorted(path.name for path in folder.iterdir()) == [
        "alignment.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model-parts", "tokenizer"]


@pytest.mark.parametrize(("rows", "tied"), [(400, False), (374, False), (374, True)])
def test_added_rows_are_the_mean_of_the_llms_own(tmp_path: Path, rows: int, tied: bool) -> None:
    tower = tiny_vision(tmp_path / "vision")
    llm = tiny_llm(tmp_path / "llm", vocab_size=rows, tie_word_embeddings=tied)
    tokens = len(tiny_tokenizer(tmp_path / "tokenizer"))
    state = weights(init_model(str(tower), str(llm), tmp_path / "model"))
    before = weights(llm)
    names = {"language_model.model.embed_tokens.weight": "model.embed_tokens.weight"}
    names |= {} if tied else {"language_model.lm_head.weight": "lm_head.weight"}
    assert ("language_model.lm_head.weight" in state) is not tied
    for name, old in names.items():
        kept = min(tokens, rows)
        assert torch.equal(state[name][:kept], before[old][:kept])
        added = state[name][tokens : tokens + 1] if rows > tokens else state[name][tokens:]
        torch.testing.assert_close(added, before[old][:kept].mean(0).expand_as(added))
        if rows > tokens:  # the LLM's own padding rows are left alone
            assert torch.equal(state[name][tokens + 1 :], before[old][tokens + 1 :])
            assert len(state[name]) == VOCABULARY
        else:
            assert len(state[name]) % 64 == 0


def test_the_projector_depends_on_the_seed_alone(tmp_path: Path) -> None:
    tower, llm = str(tiny_vision(tmp_path / "vision")), str(tiny_llm(tmp_path / "llm"))
    torch.manual_seed(5)
    first = weights(init_model(tower, llm, tmp_path / "first", seed=7))
    torch.manual_seed(6)
    again = weights(init_model(tower, llm, tmp_path / "again", seed=7))
    other = weights(init_model(tower, llm, tmp_path / "other", seed=8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    differing = {name for name in first if not torch.equal(first[name], other[name])}
    assert differing == {f"multi_modal_projector.linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}
    bound = 16**-0.5  # torch.nn.Linear's, uniform
    assert 0.9 * bound < first["multi_modal_projector.linear_1.weight"].abs().max() <= bound


def test_the_linear_projector_is_its_first_layer(tmp_path: Path) -> None:
    model, _ = load(tiny_model(tmp_path / "model", projector="linear"))
    features = torch.randn(5, 16)
    projector = model.model.multi_modal_projector
    assert torch.equal(projector(features), projector.linear_1(features))
    assert tuple(projector.linear_1.weight.shape) == (32, 16)


def test_dtype(tmp_path: Path) -> None:
    state = weights(tiny_model(tmp_path / "model", dtype="bfloat16"))
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}


def test_an_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype = int8: expected float32"):
        init_model("packaged", "packaged", tmp_path / "model", dtype="int8")


@pytest.mark.parametrize("template", [None, CHATML], ids=["vicuna", "chatml"])
def test_both_forms_of_content_give_one_text(tmp_path: Path, template: str | None) -> None:
    llm = tiny_llm(tmp_path / "llm", template=template)
    _, processor = load(init_model(str(tiny_vision(tmp_path / "vision")), str(llm), tmp_path / "model"))
    texts = {
        template.apply_chat_template(messages + ANSWER, tokenize=False)
        for messages in (LIST, STRING)
        for template in (processor, processor.tokenizer)
    }
    expected = {
        None: "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nWhat is it? ASSISTANT: a red square</s>",
        CHATML: "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\na red square<|im_end|>\n",
    }
    assert texts == {expected[template]}


def test_vicuna_marks_what_is_trained(tmp_path: Path) -> None:
    _, processor = load(tiny_model(tmp_path / "model"))
    tokenizer = processor.tokenizer
    messages = [{"role": "system", "content": "Be brief."}, *STRING, *ANSWER, *STRING, *ANSWER]
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    whole = "Be brief. " + 2 * "USER: <image>\nWhat is it? ASSISTANT: a red square</s>"
    assert tokenizer.decode(out["input_ids"]) == whole
    trained = [token for token, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(trained).replace(" a", "a") == 2 * "a red square</s>"
    prompt = tokenizer.apply_chat_template(STRING, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("What is it? ASSISTANT:")


@pytest.mark.parametrize(
    ("template", "expected"),
    [(CHATML, "<|im_end|>"), (CHATML + "</s>", "<|im_end|>"), (CHATML.replace("<|im_end|>", "."), "</s>")],
    ids=["chatml", "phi3-like", "no special token"],
)
def test_the_end_of_a_turn_becomes_the_eos(tmp_path: Path, template: str, expected: str) -> None:
    llm = tiny_llm(tmp_path / "llm", template=template)
    model, processor = load(init_model(str(tiny_vision(tmp_path / "vision")), str(llm), tmp_path / "model"))
    tokenizer = processor.tokenizer
    assert tokenizer.eos_token == expected
    assert tokenizer.pad_token == "<pad>"
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("</s>", expected)}
    assert model.generation_config.eos_token_id == sorted(ends)


def test_a_template_that_cannot_answer(tmp_path: Path) -> None:
    llm = tiny_llm(tmp_path / "llm", template="{{ raise_exception('no roles here') }}")
    with pytest.raises(UserError, match=r"cannot render a question with its answer \(no roles here\)"):
        init_model(str(tiny_vision(tmp_path / "vision")), str(llm), tmp_path / "model")


@pytest.mark.parametrize(("unknown", "expected"), [("<unk>", "<unk>"), (None, "<pad>"), ("</s>", "<pad>")])
@pytest.mark.parametrize("pad", [None, "</s>"])
def test_padding_is_no_end(tmp_path: Path, pad: str | None, unknown: str | None, expected: str) -> None:
    llm = tiny_llm(tmp_path / "llm")
    edit(llm / "tokenizer_config.json", pad_token=pad, unk_token=unknown)
    model, processor = load(init_model(str(tiny_vision(tmp_path / "vision")), str(llm), tmp_path / "model"))
    assert processor.tokenizer.pad_token == expected
    assert processor.tokenizer.eos_token == "</s>"
    assert model.config.text_config.pad_token_id == processor.tokenizer.pad_token_id
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_a_wrong_strategy_is_found(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", "siglip")
    check_model_folder(folder)
    edit(folder / "config.json", vision_feature_select_strategy="default")
    with pytest.raises(UserError, match=r"model: the processor gives an image 16 tokens, the tower gives 15 features"):
        check_model_folder(folder)


def test_another_image_token_is_found(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    edit(folder / "config.json", image_token_index=5)
    with pytest.raises(UserError, match="image_token_index = 5"):
        check_model_folder(folder)


def test_a_folder_of_something_else_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        check_model_folder(tmp_path)
    with pytest.raises(UserError, match="'llama', expected 'llava'"):
        check_model_folder(tiny_llm(tmp_path / "llm"))


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="expected a new or an empty folder"):
        tiny_model(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["notes.txt"]


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise UserError("no")

    monkeypatch.setattr("trainer.init.check_model_folder", fail)
    with pytest.raises(UserError, match="no"):
        tiny_model(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model-parts"]


@pytest.mark.parametrize(
    ("vision", "llm", "message"),
    [
        ("no/such/folder", "llm", "no such folder"),
        ("someone/no-such-model", "llm", "cannot be loaded"),
        ("empty", "llm", "no config.json"),
        ("llm", "llm", "'llama' is no vision tower; expected packaged, s2:SPEC, CLIP"),
        ("registers", "llm", "DINOv2 without registers"),
        ("s2@2,1:vision", "llm", "ascending scales"),
        ("vision", "vision", "is no causal LM"),
        ("vision", "missing.gguf", "no such file"),
        ("vision", "gemma2", "other logits than alone"),
        ("damaged", "llm", "damaged: cannot be loaded"),
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
    with pytest.raises(UserError, match=message) as caught:
        init_model(vision, llm, Path("out"))
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()


def _broken_parts() -> None:
    from safetensors.torch import save_file
    from transformers import Dinov2WithRegistersConfig, Gemma2Config, Gemma2ForCausalLM

    Dinov2WithRegistersConfig().save_pretrained("registers")
    (tiny_vision(Path("damaged")) / "model.safetensors").write_bytes(b"not weights")
    file = tiny_vision(Path("incomplete")) / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "layers.1" not in name}, file)
    tiny_tokenizer(Path("gemma2"))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Gemma2Config(vocab_size=400, num_hidden_layers=2, head_dim=8, final_logit_softcapping=0.1, **sizes)
    with quiet():
        Gemma2ForCausalLM(config).save_pretrained("gemma2")


def test_a_slow_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, tower = tiny_llm(tmp_path / "llm"), tiny_vision(tmp_path / "vision")
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.is_fast", False)
    with pytest.raises(UserError, match=r"tokenizer is not a fast one"):
        init_model(str(tower), str(llm), tmp_path / "model")


@pytest.mark.parametrize("layer", [-5, 4])
def test_a_layer_that_the_tower_lacks(tmp_path: Path, layer: int) -> None:
    with pytest.raises(UserError, match=r"expected -4 to 3"):
        tiny_model(tmp_path / "model", feature_layer=layer)


def test_config_survives_reading(tmp_path: Path) -> None:
    config = LlavaConfig.from_pretrained(tiny_model(tmp_path / "model", feature_layer=-1))
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "default")
    assert config.text_config.tie_word_embeddings is False

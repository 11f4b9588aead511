"""From parts to a folder: what is in it, and that stock transformers loads it."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from sea_pipeline.core.errors import UserError
from tests.support.initialised import LIST
from tests.support.refused import ran
from tests.support.tiny_models import VOCABULARY, tiny_llm, tiny_model, tiny_tokenizer, tiny_vision
from tests.support.tiny_runs import World
from trainer.model import assemble
from trainer.model.assemble import init_model


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.processes
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
        "paths": ["vision", "llm"],
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
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["vision_feature_layer"] == -2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model-parts", "tokenizer"]


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_dtype(tmp_path: Path) -> None:
    state = weights(tiny_model(tmp_path / "model", dtype="bfloat16"))
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}


@pytest.mark.parametrize("factor", [1.0, 1.05])
def test_logits_are_compared_in_the_steps_of_their_precision(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The LLaVA's head has more rows: another processor may round the same sums to the next number, but scales none."""
    tower, llm = tiny_vision(tmp_path / "vision"), tiny_llm(tmp_path / "llm", initializer_range=0.3)
    plain = assemble._logits

    def rounded(model: Any, *given: Any) -> torch.Tensor:
        if not isinstance(model, LlavaForConditionalGeneration):
            return plain(model, *given)
        found = (factor * plain(model, *given)).bfloat16()
        return (found.view(torch.int16) + 1).view(torch.bfloat16).float()

    monkeypatch.setattr(assemble, "_logits", rounded)
    with pytest.raises(UserError, match="other logits than alone") if factor > 1 else nullcontext():
        init_model(str(tower), str(llm), tmp_path / "model", dtype="bfloat16")


def test_an_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype = int8: expected float32"):
        init_model("packaged", "packaged", tmp_path / "model", dtype="int8")


@pytest.mark.slow
def test_the_commands_make_and_evaluate_a_model(command: Any, tiny: World, tmp_path: Path) -> None:
    vision, llm = tiny_vision(tmp_path / "vision"), tiny_llm(tmp_path / "llm")
    stdout = ran(command, "init", "--vision", vision, "--llm", llm, "--out", tmp_path / "model")
    assert "4 x 4 visual tokens an image" in stdout
    code, said, _ = command("init", "--vision", vision, "--llm", llm, "--out", tmp_path / "again", "--json")
    made = json.loads(said)
    assert (code, made["folder"], made["grid"]) == (0, str(tmp_path / "again"), [4, 4])
    assert f"{made['vocabulary']:,} tokens of the LLM" in stdout
    arguments = ["--data", tiny.data, "--image-root", tiny.data.parent / "images", "--json"]
    stdout = ran(command, "evaluate", tmp_path / "model", *arguments)
    assert {"lm_loss", "right_photo_gain", "right_photo_gain_se", "tacs"} < set(json.loads(stdout))
    assert not {"label_hit@1", "gap", "meaningful"} & set(json.loads(stdout))

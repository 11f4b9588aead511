"""Alignment without the LLM: only what trains against the embedding matrix is read, kept and written."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from sea_pipeline.core.errors import UserError
from tests.support.memory import READY, measured
from tests.support.run_values import align_only, sharded, tensors
from tests.support.tiny_models import tiny_model
from tests.support.tiny_runs import World, lines_of, tiny_recipe
from trainer.model import load
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.load import load_model, open_model_folder
from trainer.model.save import save_model
from trainer.training.run import train

ALIGN = f"""
import sys
from pathlib import Path
from tests.support.tiny_runs import colours
from trainer.recipes.recipe import Recipe
from trainer.training.run import train
{READY}
with colours():
    train(Recipe.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
"""


def llava_hf(name: str) -> str:
    """The spelling of llava-hf/llava-1.5-7b-hf, which transformers 4 wrote."""
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def of_transformers_4_52(name: str) -> str:
    name = name.replace("language_model.lm_head", "lm_head").replace("language_model.model", "model.language_model")
    name = name.replace("vision_tower.", "model.vision_tower.vision_model.")
    return name.replace("multi_modal_projector", "model.multi_modal_projector")


def respelled(model: Path, out: Path, spelling: Callable[[str], str]) -> Path:
    shutil.copytree(model, out)
    values = {spelling(name): value for name, value in load_file(model / "model.safetensors").items()}
    save_file(values, out / "model.safetensors", {"format": "pt"})
    return out


def start_folder(kind: str, tiny: World, root: Path) -> Path:
    if kind == "sharded":
        return sharded(tiny.model, root / kind)
    if kind in ("llava_hf", "of_transformers_4_52"):
        return respelled(tiny.model, root / kind, {"llava_hf": llava_hf}.get(kind, of_transformers_4_52))
    settings: dict[str, Any] = {
        "bfloat16, tied": {"dtype": "bfloat16", "llm": "gemma"},
        "float16, linear": {"dtype": "float16", "vision": "siglip", "projector": "linear"},
    }[kind]
    return tiny_model(root / kind, **settings)


KINDS = ("bfloat16, tied", "float16, linear", "sharded", "llava_hf", "of_transformers_4_52")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_with_the_whole_model_and_all_other_bytes_stay(
    kind: str, tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_folder(kind, tiny, tmp_path)
    for file in start.glob("*.safetensors"):
        file.chmod(0o444)
    recipe = align_only(tiny, start)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"evaluate": str(tiny.held_out)})})
    lean = train(recipe, tmp_path / "lean")
    only_the_projector_differs(start, lean.model, linear="linear" in kind)
    monkeypatch.setattr(load, "keep_layers", lambda config, count: None)
    monkeypatch.setattr(load, "_Headless", AlignedLlava)
    whole = train(recipe, tmp_path / "whole")
    untimed = [
        [{name: value for name, value in line.items() if "second" not in name and "time" not in name} for line in lines]
        for lines in (lines_of(run.out) for run in (lean, whole))
    ]
    assert untimed[0] == untimed[1]
    assert {"tacs", "label_hit@1"} <= lean.summary["end"].keys()
    assert lean.summary["end"] == whole.summary["end"]
    trained, twin = tensors(lean.model), tensors(whole.model)
    assert all(torch.equal(trained[name], twin[name]) for name in twin)


def only_the_projector_differs(start: Path, model: Path, *, linear: bool) -> None:
    """Byte for byte, and in the modes of files."""
    assert {file.name for file in model.iterdir()} == {file.name for file in start.iterdir()}
    changed = set()
    for file in start.iterdir():
        before, after = file.read_bytes(), (model / file.name).read_bytes()
        assert (model / file.name).stat().st_mode == file.stat().st_mode
        for name, begin, end in spans(file) if file.suffix == ".safetensors" else []:
            if "multi_modal_projector" in name:
                changed |= {name.rpartition("projector.")[2]} if before[begin:end] != after[begin:end] else set()
                before, after = (each[:begin] + bytes(end - begin) + each[end:] for each in (before, after))
        assert before == after, file.name
    last = set() if linear else {"linear_2.weight", "linear_2.bias"}
    assert changed == {"linear_1.weight", "linear_1.bias"} | last
    _, report = LlavaForConditionalGeneration.from_pretrained(model, output_loading_info=True)
    assert not any(report.values()), report


def spans(file: Path) -> list[tuple[str, int, int]]:
    """Name, first byte and end of each tensor in a weight file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    entries = [(name, entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__"]
    return [(name, 8 + length + begin, 8 + length + end) for name, (begin, end) in entries]


@pytest.mark.slow
@pytest.mark.parametrize("llm", ["llama", "gemma"])
def test_the_embedding_matrix_is_all_of_the_llm(llm: str, tiny: World, tmp_path: Path) -> None:
    folder = open_model_folder(tiny_model(tmp_path / llm, llm=llm))
    model = load_model(folder, align_only(tiny, folder.path))
    ours = {name: value for name, value in model.named_parameters() if "language_model" in name or "head" in name}
    assert ours.keys() == {"model.language_model.embed_tokens.weight", "model.language_model.norm.weight"}
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {
        f"model.multi_modal_projector.linear_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")
    }
    assert not any(value.is_meta for value in (*model.parameters(), *model.buffers()))
    stock = LlavaForConditionalGeneration.from_pretrained(folder.path)
    ids = torch.arange(folder.vocabulary)
    assert torch.equal(model.get_input_embeddings()(ids), stock.get_input_embeddings()(ids))
    pixels = torch.randn(2, 3, 32, 32)
    wanted = stock.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.equal(model.tower_output(pixels), wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lm"), [("embed_tokens.weight", 0), ("linear_1.bias", 1), ("fc1.weight", 0)])
def test_a_weight_that_is_not_there_is_not_drawn_at_random(name: str, lm: int, tiny: World, tmp_path: Path) -> None:
    shutil.copytree(tiny.model, start := tmp_path / "start")
    file = start / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if not key.endswith(name)}, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"weights are missing, the first is .*{name}; copy the folder again"):
        load_model(open_model_folder(start), tiny_recipe(tiny, loss={"lm": lm}))


def test_a_projector_of_another_shape_is_never_written(tiny: World, tmp_path: Path) -> None:
    folder = open_model_folder(tiny.model)
    model = load_model(folder, align_only(tiny, tiny.model))
    model.model.multi_modal_projector.linear_1.weight.data = torch.zeros(16, 32)
    with pytest.raises(AssertionError, match=r"linear_1\.weight"):
        save_model(model, folder, tmp_path / "out", align_only(tiny, tiny.model))
    assert not any(tmp_path.iterdir())


@pytest.mark.processes
def test_the_layers_are_never_in_memory(tiny: World, tmp_path: Path) -> None:
    """Loading, training and saving beside layers of 300 MB take what they take beside small ones."""
    shutil.copytree(tiny.model, start := tmp_path / "start")
    config = json.loads((start / "config.json").read_text())
    rows = config["text_config"]["intermediate_size"] = 800_000
    (start / "config.json").write_text(json.dumps(config))
    values = load_file(start / "model.safetensors")
    for name in values:
        if "down_proj" in name:
            values[name] = torch.ones(32, rows, dtype=torch.bfloat16)
        elif "gate_proj" in name or "up_proj" in name:
            values[name] = torch.ones(rows, 32, dtype=torch.bfloat16)
    save_file(values, start / "model.safetensors", {"format": "pt"})
    del values
    assert (start / "model.safetensors").stat().st_size > 300e6
    recipe = tmp_path / "recipe.json"
    recipe.write_text(align_only(tiny, start).model_dump_json())
    memory = measured("-c", ALIGN, str(recipe), str(tmp_path / "out"))
    assert (tmp_path / "out" / "summary.json").is_file()
    assert (tmp_path / "out" / "model" / "model.safetensors").stat().st_size > 300e6
    assert memory.peak - memory.before < 200e6

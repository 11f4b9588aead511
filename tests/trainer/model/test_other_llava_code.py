"""Folders whose config names transformers' LLaVA by its model type alone: nothing takes them for one."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.refused import refused
from trainer.evaluation.checks import check_evaluate
from trainer.evaluation.settings import EvaluateSettings
from trainer.export.checks import check_export
from trainer.export.settings import ExportSettings
from trainer.model.existing_folder import check_existing_folder
from trainer.model.llava_folder import check_llava_folder
from trainer.recipes.recipe import Recipe
from trainer.teacher.checks import check_teacher
from trainer.teacher.settings import TeachSettings
from trainer.training.checks import check_recipe

LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 400, "architectures": ["LlavaLlamaForCausalLM"]}
FLAT: dict[str, dict[str, Any]] = {
    "LLaVA-1.5": LLAMA | {"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
    "its first name": LLAMA | {"model_type": "llava"},
    "ShareGPT4V": LLAMA | {"model_type": "share4v", "mm_projector_type": "mlp2x_gelu"},
    "LLaVA-Med": LLAMA | {"model_type": "llava_mistral", "mm_hidden_size": 1024},
    "LLaVA-NeXT": LLAMA | {"model_type": "llava_next", "tune_mm_mlp_adapter": False},
    "with parts": LLAMA | {"model_type": "llava", "mm_vision_tower": "x", "text_config": {}, "vision_config": {}},
}
ADVICE = "take the same model as transformers has it, such as llava-hf/llava-1.5-7b-hf, or convert it with"


def folder_with(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"weights")
    return folder


def refused_everywhere(folder: Path, said: str, start: str) -> None:
    (folder.parent / "data.json").write_text("[]")
    data = {"data": str(folder.parent / "data.json"), "image_root": str(folder.parent)}
    for check in (
        lambda: check_existing_folder(folder),
        lambda: check_llava_folder(folder),
        lambda: check_export(ExportSettings(source=folder, out=folder.parent / "out")),
        lambda: check_evaluate(EvaluateSettings(model=folder, **data)),
        lambda: check_teacher(TeachSettings(model=folder, **data)),
    ):
        with refused(said, start=f"{folder}: {start}"):
            check()


@pytest.mark.parametrize("name", FLAT)
def test_a_checkpoint_of_llavas_own_code_is_refused_everywhere(name: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "llava", FLAT[name])
    refused_everywhere(folder, ADVICE, "is a checkpoint of LLaVA's own code (its config.json has ")


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_is_refused_everywhere(whole: bool, tmp_path: Path) -> None:
    """transformers would load it into the weights beside it; a run would not save it."""
    folder = folder_with(tmp_path / "llava", {"model_type": "llava", "vision_config": {}, "text_config": {}})
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    if not whole:
        (folder / "config.json").unlink()
    advice = "save what it returns with the processor, and give that folder" + ", or remove adapter_conf" * whole
    refused_everywhere(folder, advice, "holds an adapter (adapter_config.json) for some/model, not a whole model; ")


def test_a_llava_whose_weights_are_pickled_is_refused(tmp_path: Path) -> None:
    """Training would load them, and fail when it saves; `evaluate` loads them."""
    folder = folder_with(tmp_path / "model", {"model_type": "llava", "vision_config": {}, "text_config": {}})
    (tmp_path / "data.json").write_text("[]")
    data = {"data": str(tmp_path / "data.json"), "image_root": str(tmp_path)}
    recipe = Recipe.model_validate({"model": folder, "data": {"train": data["data"]}})
    for check in (
        lambda: check_recipe(recipe),
        lambda: check_export(ExportSettings(source=folder, out=tmp_path / "out")),
        lambda: check_teacher(TeachSettings(model=folder, **data)),
    ):
        with refused("found pytorch_model-00001-of-00002.bin; give ", "-safetensors, which", start=f"{folder}: "):
            check()
    check_evaluate(EvaluateSettings(model=folder, **data))


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_a_config_without_a_part_is_refused(part: str, tmp_path: Path) -> None:
    """transformers would take a default one, of 7 billion weights."""
    folder = folder_with(
        tmp_path / "model", {"model_type": "gemma3", "vision_config": {}, "text_config": {}, part: None}
    )
    with refused(f"found no {part}; copy the model's own config.json again", start=f"{folder}: "):
        check_existing_folder(folder)


def test_settings_of_an_llm_may_lie_at_the_top(tmp_path: Path) -> None:
    """Qwen2-VL's folders on the hub have them there, beside `vision_config`."""
    folder = folder_with(tmp_path / "model", LLAMA | {"model_type": "qwen2_vl", "vision_config": {"depth": 2}})
    with refused("expected its weights in model.safetensors", start=f"{folder}: "):
        check_existing_folder(folder)

"""Checks whether a folder's own files say that it is a LLaVA, without loading torch.

`folder_check` checks whether its parts agree.
"""

from pathlib import Path
from typing import Any

from sea_pipeline.core.errors import UserError
from sea_pipeline.output.run_files import stage_folders
from sea_pipeline.storage.json_files import read_json

ALIGNMENT = "alignment.json"
"""The file with what training needs to know of a folder and transformers' own files do not say."""
ADAPTER = "adapter_config.json"
"""The file with peft's settings of an adapter."""
EXISTING = (
    "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "gemma3",
    "paligemma", "internvl", "llama4",
)  # fmt: skip
"""The model types of the families in `trainer.attach.families`."""
_OWN_CODE = (
    "mm_vision_tower", "mm_projector_type", "mm_hidden_size", "mm_vision_select_layer", "mm_use_im_start_end",
    "tune_mm_mlp_adapter",
)  # fmt: skip
"""Keys that LLaVA's own code writes into `config.json`. Gemma 3 has others that begin with `mm_`."""
_FLAT = ("qwen2_vl", "qwen2_5_vl")
"""Model types whose LLM's settings may lie at the top of `config.json`."""


def check_llava_folder(folder: Path) -> None:
    """Check what a model folder's own files say of it.

    Raises:
        UserError: there is no folder, it is another model's, or it was written for another program.
    """
    read_alignment(folder)
    read_config(folder)


def read_alignment(folder: Path) -> dict[str, Any]:
    """Read `alignment.json`.

    It is empty for a folder that other programs wrote.

    Raises:
        UserError: the folder was written for another program.
    """
    extra: dict[str, Any] = read_json(folder / ALIGNMENT, absent={})
    if extra.get("inputs_scaled"):
        raise UserError(
            f"{folder}: its projector was rescaled for another program (export --rescale-projector); use what it was "
            "exported from"
        )
    return extra


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a LLaVA.

    Raises:
        UserError: there is none, or it is another model's.
    """
    refuse_adapter(str(folder), folder / ADAPTER, "processor")
    if not (folder / "config.json").is_file():
        stages, ordered = stage_folders(folder)
        models = [one / "model" for one in (folder, *stages)]
        inner = [str(model) for model in models if (model / "config.json").is_file()]
        found = "there is no config.json in it" if folder.exists() else "there is no such folder"
        wanted = "expected a model of sea-pipeline init, or that of a run: RUN/model"
        if inner:
            wanted = f"give {inner[-1] if ordered else ' or '.join(inner)}"
        raise UserError(f"{folder}: {found}; {wanted}")
    said: dict[str, Any] = read_json(folder / "config.json")
    check_form(folder, said)
    kind = said.get("model_type")
    if kind != "llava":
        families = "" if kind in EXISTING else f"; these may be {', '.join(EXISTING)}"
        raise UserError(
            f"{folder}: model_type is {kind!r}, expected 'llava'; sea-pipeline init makes one of a tower and an LLM, "
            f"and model: {{attach: FOLDER}} in a recipe trains a model that you have{families}"
        )
    check_parts(folder, said)
    return said


def refuse_adapter(spec: str, file: Path, reads: str = "tokenizer") -> None:
    """Refuse an adapter's folder, or a model's with an adapter beside its weights.

    transformers would load the adapter into the model beside it, or into the one that it names, wherever that is.

    Args:
        spec: the folder or hub name.
        file: where the adapter's settings would be.
        reads: what the model's texts are read with, for the advice.

    Raises:
        UserError: it is one.
    """
    if not file.is_file():
        return
    base = read_json(file).get("base_model_name_or_path")
    beside = ", or remove adapter_config.json to use the weights beside it"
    raise UserError(
        f"{spec}: holds an adapter (adapter_config.json) for {base}, not a whole model; merge them with peft's "
        f"merge_and_unload, save what it returns with the {reads}, and give that folder"
        + (beside if Path(spec, "config.json").is_file() else "")
    )


def check_form(folder: Path, said: dict[str, Any]) -> None:
    """Refuse a `config.json` of LLaVA's own code, and of those that come from it.

    Its model type is "llava", too, so transformers would read it as its own LLaVA of default sizes, and draw the
    weights at random.

    Raises:
        UserError: it is one.
    """
    own = [name for name in _OWN_CODE if name in said]
    kind = str(said.get("model_type"))
    if not own and kind.startswith("llava") and not isinstance(said.get("text_config"), dict):
        own = ["no text_config"]
    if own:
        raise UserError(
            f"{folder}: is a checkpoint of LLaVA's own code (its config.json has {own[0]}), which transformers cannot "
            "read; take the same model as transformers has it, such as llava-hf/llava-1.5-7b-hf, or convert it with "
            "src/transformers/models/llava/convert_llava_weights_to_hf.py of transformers' repository"
        )


def check_parts(folder: Path, said: dict[str, Any]) -> None:
    """Refuse a `config.json` that does not describe its parts; transformers would take default ones.

    Raises:
        UserError: it does not.
    """
    parts = ("vision_config",) if said.get("model_type") in _FLAT else ("vision_config", "text_config")
    for part in parts:
        if not isinstance(said.get(part), dict):
            raise UserError(
                f"{folder}: expected the model's parts in its config.json; found no {part}; copy the model's own "
                "config.json again"
            )

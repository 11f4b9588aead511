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
            f"{folder}: its projector was rescaled for transformers 4 (export --rescale-projector); use what it was "
            "exported from"
        )
    return extra


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a LLaVA.

    Raises:
        UserError: there is none, or it is another model's.
    """
    if not (folder / "config.json").is_file():
        models = [one / "model" for one in (folder, *stage_folders(folder))]
        inner = [model for model in models if (model / "config.json").is_file()]
        found = "there is no config.json in it" if folder.exists() else "there is no such folder"
        wanted = f"give {inner[-1]}" if inner else "expected a model of sea-pipeline init, or that of a run: RUN/model"
        raise UserError(f"{folder}: {found}; {wanted}")
    said: dict[str, Any] = read_json(folder / "config.json")
    kind = said.get("model_type")
    if kind != "llava":
        raise UserError(f"{folder}: model_type is {kind!r}, expected 'llava'; use sea-pipeline init")
    return said

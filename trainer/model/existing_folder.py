"""Checks whether a folder's own files say that it is a model that `attach` knows, without loading torch."""

from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.json_files import read_json
from trainer.model.llava_folder import ADAPTER, check_form, check_parts, refuse_adapter
from trainer.model.llava_folder import EXISTING as EXISTING
from trainer.model.weight_files import weight_files


def check_existing_folder(folder: Path) -> None:
    """Check what a folder's own files say of it.

    Raises:
        UserError: there is no folder, or it holds another model or an adapter, or no weights as safetensors.
    """
    refuse_adapter(str(folder), folder / ADAPTER, "processor")
    kind = model_type(folder)
    if kind is None:
        found = "there is no config.json in it" if folder.exists() else "there is no such folder"
        raise UserError(
            f"{folder}: {found}; expected a folder of a vision-language model, such as "
            "model.save_pretrained(FOLDER) and processor.save_pretrained(FOLDER) write it"
        )
    said = read_json(folder / "config.json")
    check_form(folder, said)
    if kind not in EXISTING:
        raise UserError(
            f"{folder}: model_type is {kind!r}; expected one of {', '.join(EXISTING)}; take a model of one of these "
            "families"
        )
    check_parts(folder, said)
    weight_files(folder)


def model_type(folder: Path) -> str | None:
    """Return the model type that a folder's `config.json` names, or None if there is no such file."""
    if not (folder / "config.json").is_file():
        return None
    return str(read_json(folder / "config.json").get("model_type"))


def is_existing(folder: Path) -> bool:
    """Tell whether commands read a folder as an existing model, and not as a LLaVA of this project.

    Such a LLaVA has the same model type as LLaVA-1.5. So a folder of that type counts as an existing model if it is the
    model of a run that trained it as one, because its prompts are then written otherwise.
    """
    kind = model_type(folder)
    if kind != "llava":
        return kind in EXISTING
    model = folder.resolve()
    return model.name == "model" and has_attached(model.parent)


def has_attached(run: Path) -> bool:
    """Tell whether a folder is that of a run with `model: {attach: FOLDER}`."""
    record = run / "run.json"
    recipe = read_json(record).get("recipe") if record.is_file() else None
    model = recipe.get("model") if isinstance(recipe, dict) else None
    return isinstance(model, dict) and "attach" in model

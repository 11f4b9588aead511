"""What a training run is, by name and hash: two runs whose fields are equal give the same weights."""

import hashlib
from pathlib import Path
from typing import Any

from sea_pipeline.storage.hashing import file_sha256, fingerprint_of
from sea_pipeline.storage.leftovers import files_like
from trainer.build import Inputs
from trainer.recipes.recipe import Parts, Recipe
from trainer.targets.store import CODEC
from trainer.text_lens import lens_fields
from trainer.weights import PROJECTOR, tensors_of

ACCUMULATION = "gradient_accumulation_steps"
MODELS = Path("runs") / "models"
"""Where models made from parts are kept: runs from the same parts and seed start from the same folder."""

_ASIDE = ("save_", "logging_", "report_to", "dataloader_num", "dataloader_p", "disable_tqdm")
"""Beginnings of training arguments that change what a run writes or how fast, and no weight."""
_PROCESSING = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "processor_config.json",
    "preprocessor_config.json",
)
_LOOKED_AT = 4096
"""Bytes at the begin of each tensor."""


def run_fields(inputs: Inputs, processes: int) -> dict[str, Any]:
    """Everything that decides the trained weights, by name: how many micro-batches a step has, not who reads them."""
    recipe, folder, store, targets = inputs.recipe, inputs.folder, inputs.store, inputs.targets
    aside = {"name", "preset", "model", "labels", "teacher", "evaluate_every", "keep_checkpoints"}
    aside |= {"lora"} if recipe.lora is None else set()
    settings = recipe.model_dump(mode="json", exclude=aside)
    if recipe.loss.sds.temperature == 1:
        del settings["loss"]["sds"]["temperature"]
    lens = settings["loss"]["basic"].pop("lens")
    if lens != "none" and {"das", "sds"} & recipe.loss.terms().keys():
        settings["loss"]["basic"]["lens"] = {"kind": lens, **lens_fields()}
    elsewhere = ("train", "image_root", "evaluate", "bad_rows")
    settings["data"] = {key: value for key, value in settings["data"].items() if key not in elsewhere}
    if recipe.data.image_aspect_ratio is None:  # as before there was such a key
        del settings["data"]["image_aspect_ratio"]
    arguments = settings["training_arguments"]
    settings["training_arguments"] = {key: value for key, value in arguments.items() if not key.startswith(_ASIDE)}
    if processes > 1:
        settings["training_arguments"][ACCUMULATION] = processes * arguments.get(ACCUMULATION, 1)
    labels = store if store is not None and recipe.loss.sea.weight else None
    bad = inputs.conversations.bad
    return ({"left_out": [len(bad.rows), bad.sha256()]} if bad.rows else {}) | {
        "recipe": settings,
        "transfer": recipe.labels.transfer,
        "crops": recipe.labels.crops,
        "model": {"config": file_sha256(folder.path / "config.json"), "weights": weights_digest(folder.path)},
        "processing": processing_digests(folder.path),
        "data": file_sha256(inputs.conversations.file),
        "labels": None if labels is None else labels.fingerprint,
        # Of one fingerprint, a folder may since hold labels of more images; those that it had are as they were.
        "labelled": None if labels is None else sum(image in labels for image in inputs.conversations.image_ids),
        "teacher": None if targets is None else [targets.fingerprint, file_sha256(targets.path / CODEC)],
    }


def beside(inputs: Inputs) -> dict[str, Any]:
    """What else tells runs apart whose folder nobody has named; a run that goes on may have its images elsewhere."""
    evaluate = inputs.recipe.data.evaluate
    return {
        "image_root": str(inputs.conversations.image_root.resolve()),
        "evaluate": file_sha256(Path(evaluate)) if evaluate and Path(evaluate).is_file() else evaluate,
    }


def start_folder(recipe: Recipe) -> Path:
    """The model folder that a run begins with, which for parts need not be there yet."""
    if not isinstance(recipe.model, Parts):
        return recipe.model
    parts = recipe.model
    inside = {spec: _part_digest(Path(spec)) for spec in (parts.vision, parts.llm) if Path(spec).exists()}
    key = fingerprint_of(parts.model_dump() | {"seed": recipe.seed} | ({"files": inside} if inside else {}))[:8]
    return MODELS / f"{_plain(parts.vision)}-{_plain(parts.llm)}-{key}"


def weights_digest(folder: Path) -> str:
    """sha256 of the projector's values and of the begin of every other tensor: all of many gigabytes cost minutes."""
    digest = hashlib.sha256()
    for path in files_like(folder, "*.safetensors"):
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
        with path.open("rb") as file:
            start, tensors = tensors_of(file)
            for name, entry in sorted(tensors.items()):
                begin, end = entry["data_offsets"]
                file.seek(start + begin)
                digest.update(f"{name}:{entry['dtype']}:{end - begin};".encode())
                digest.update(file.read(end - begin if PROJECTOR in name else min(_LOOKED_AT, end - begin)))
    return digest.hexdigest()


def processing_digests(folder: Path) -> dict[str, str]:
    """sha256 of the files of a model folder that decide a prompt's tokens and an image's pixels, by name."""
    return {name: file_sha256(folder / name) for name in _PROCESSING if (folder / name).is_file()}


def _part_digest(part: Path) -> str:
    """Of a tower's or an LLM's folder, or of a file of weights."""
    if part.is_file():
        return f"{part.stat().st_size}:{part.stat().st_mtime_ns}"
    config = file_sha256(part / "config.json") if (part / "config.json").is_file() else ""
    return fingerprint_of({"config": config, "weights": weights_digest(part), **processing_digests(part)})


def _plain(spec: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in spec.rstrip("/").split("/")[-1])

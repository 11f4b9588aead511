"""What a model folder is, by the hashes of what it holds, and which one a run begins with."""

import hashlib
from pathlib import Path

from sea_pipeline.storage.hashing import file_sha256, fingerprint_of
from sea_pipeline.storage.leftovers import files_like
from trainer.model.tensor_files import PROJECTOR, tensors_of
from trainer.recipes.recipe import Parts, Recipe

MODELS = Path("runs") / "models"
"""Where models made from parts are kept: runs from the same parts and seed start from the same folder."""
_PROCESSING = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "processor_config.json",
    "preprocessor_config.json",
)
_LOOKED_AT = 4096
"""Bytes at the begin of each tensor."""


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

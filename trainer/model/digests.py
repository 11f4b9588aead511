"""Hashes what a model folder holds, and finds the folder that a run begins with."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile, is_zipfile

from sea_pipeline.encoders.spec import packaged_side, split_s2
from sea_pipeline.storage.hashing import file_sha256, fingerprint_of
from sea_pipeline.storage.leftovers import files_like
from trainer.model.hub import PIECES
from trainer.model.tensor_files import PROJECTOR, tensors_of
from trainer.recipes.recipe import ExistingModel, Parts, Recipe

MODELS = Path("runs") / "models"
"""The folder of models made from parts. Runs from the same parts and seed start from the same model."""
_PROCESSING = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
    *PIECES,
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
_TEMPLATES = "additional_chat_templates"
_LOOKED_AT = 4096
"""The number of bytes hashed at the beginning of each tensor."""


def start_folder(recipe: Recipe) -> Path:
    """Return the model folder that a run begins with.

    For a model made from parts it need not exist yet.
    """
    if isinstance(recipe.model, ExistingModel):
        return recipe.model.attach
    if not isinstance(recipe.model, Parts):
        return recipe.model
    return _start_folder(
        recipe, recipe.model, {spec: part_path(spec) for spec in (recipe.model.vision, recipe.model.llm)}
    )


def begun_folder(recipe: Recipe) -> Path:
    """Return the folder that a run began with: `start_folder`, or where it is under the name of an earlier version."""
    path = start_folder(recipe)
    if isinstance(recipe.model, Parts) and not path.is_dir():
        parts = recipe.model  # the folder behind `s2:` was no part of the name
        specs = {spec: Path(spec) if Path(spec).exists() else None for spec in (parts.vision, parts.llm)}
        earlier = _start_folder(recipe, parts, specs)
        return earlier if earlier.is_dir() else path
    return path


def _start_folder(recipe: Recipe, parts: Parts, paths: Mapping[str, Path | None]) -> Path:
    inside = {spec: _part_digest(path) for spec, path in paths.items() if path is not None}
    key = fingerprint_of(parts.model_dump() | {"seed": recipe.seed} | ({"files": inside} if inside else {}))[:8]
    return MODELS / f"{_plain(parts.vision)}-{_plain(parts.llm)}-{key}"


def part_path(spec: str) -> Path | None:
    """Return the folder or file that a tower or an LLM is read from; None if it is packaged or on the hub."""
    base = split_s2(spec)[1]
    return Path(base) if packaged_side(base) is None and Path(base).exists() else None


def weights_digest(folder: Path, projector: str = PROJECTOR) -> str:
    """Hash the projector's values and the beginning of every other tensor with sha256.

    Hashing all of many gigabytes would take minutes.

    Args:
        folder: a model folder.
        projector: a part of the names that the projector's tensors have.
    """
    digest = hashlib.sha256()
    for path in files_like(folder, "*.safetensors"):
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
        with path.open("rb") as file:
            start, tensors = tensors_of(file)
            for name, entry in sorted(tensors.items()):
                begin, end = entry["data_offsets"]
                file.seek(start + begin)
                digest.update(f"{name}:{entry['dtype']}:{end - begin};".encode())
                digest.update(file.read(end - begin if projector in name else min(_LOOKED_AT, end - begin)))
    return digest.hexdigest()


def processing_digests(folder: Path) -> dict[str, str]:
    """Hash the files of a model folder that decide a prompt's tokens and an image's pixels.

    Returns:
        sha256 by file name, of those that exist.
    """
    names = [*_PROCESSING, *(f"{_TEMPLATES}/{file.name}" for file in files_like(folder / _TEMPLATES, "*.jinja"))]
    return {name: file_sha256(folder / name) for name in names if (folder / name).is_file()}


def _part_digest(part: Path) -> str:
    """Hash a tower's or an LLM's folder, or name a file of weights by its size and time."""
    if part.is_file():
        return f"{part.stat().st_size}:{part.stat().st_mtime_ns}"
    config = file_sha256(part / "config.json") if (part / "config.json").is_file() else ""
    weights = weights_digest(part) if files_like(part, "*.safetensors") else _pickled_digest(part)
    return fingerprint_of({"config": config, "weights": weights, **processing_digests(part)})


def _pickled_digest(folder: Path) -> str:
    """Hash what a folder's pickled files say of themselves: an archive of torch lists a checksum of each tensor."""
    digest = hashlib.sha256()
    for path in files_like(folder, "*.bin"):
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
        if is_zipfile(path):
            with ZipFile(path) as archive:
                entries = [(entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist()]
            digest.update(repr(entries).encode())
        else:  # of torch before 1.6
            digest.update(file_sha256(path).encode())
    return digest.hexdigest()


def _plain(spec: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in spec.rstrip("/").split("/")[-1])

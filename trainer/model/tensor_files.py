"""Reads a model folder's tensors one at a time under one spelling of their names, and writes them file by file."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.storage.retry import refuse_unreadable
from trainer.model.weight_files import INDEX, WHOLE, weight_files

PROJECTOR = "multi_modal_projector."
LLM = "language_model."
TOWER = "vision_tower."

_SPELLINGS = (
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^vision_tower\.vision_model\.", TOWER),
)
"""Patterns of the names that transformers has had for a LLaVA's tensors, and the names in transformers 5's files."""
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes by their names in weight files."""
BUFFERS = re.compile(r"\.rotary_emb\.inv_freq$|\.embeddings\.position_ids$")
"""Computed values, which files of old versions kept."""


class Entry(NamedTuple):
    """A tensor of a file. `read` loads it only when it is needed."""

    name: str
    bytes: int
    read: Callable[[], torch.Tensor]


Stored = Mapping[str, Callable[[], torch.Tensor]]
"""Functions that read the tensors of a folder's files, by canonical name."""


def canonical(name: str) -> str:
    """Spell a LLaVA's tensor as transformers 5 does in files.

    Examples are `vision_tower.encoder…` and `language_model.model.layers…`.
    """
    for pattern, spelled in _SPELLINGS:
        name = re.sub(pattern, spelled, name)
    return name


def read_weights(folder: Path) -> list[Entry]:
    """List a LLaVA folder's tensors by their canonical names, in the order of its files.

    The files are those of `weight_files`. They are mapped, not read.

    Raises:
        UserError: there are none, or one is damaged.
    """
    return [entry for file in weight_files(folder) for entry in read_file(file)]


def read_file(file: Path, advice: str = "copy it again") -> list[Entry]:
    """List a safetensors file's tensors, as `read_weights` does for a folder.

    Raises:
        UserError: it cannot be read, or is damaged; the line then ends with `advice`.
    """
    try:
        file.open("rb").close()  # of a file that may not be read safetensors says that there is none
    except OSError as error:
        refuse_unreadable(file, error)
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    try:
        opened = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: is damaged ({error}); {advice}") from error
    entries: list[Entry] = []
    for stored in opened.keys():  # noqa: SIM118 - it is no mapping
        if not BUFFERS.search(stored):
            read = _reader(opened, stored)
            entries.append(Entry(canonical(stored), read().nbytes, read))
    return entries


def tensors_of(file: BinaryIO) -> tuple[int, dict[str, Any]]:
    """Read the header of a safetensors file.

    Returns:
        The offset in bytes at which the tensors begin; and by name what the header says of each: dtype, shape, offsets.

    Raises:
        UserError: it is damaged.
    """
    try:
        length = int.from_bytes(file.read(8), "little")
        tensors = json.loads(file.read(length))
        tensors.pop("__metadata__", None)
        for entry in tensors.values():
            begin, end = entry["data_offsets"]
            if not (0 <= begin <= end and isinstance(entry["dtype"], str) and isinstance(entry["shape"], list)):
                raise ValueError(f"expected offsets, dtype and shape of a tensor; found {entry!r:.80}")
    except (ValueError, LookupError, TypeError, AttributeError, MemoryError, OverflowError, RecursionError) as error:
        raise UserError(f"{file.name}: is damaged ({one_line(error)}); copy it again") from error
    return 8 + length, tensors


def overwrite(file: Path, value_of: Callable[[str], torch.Tensor | None]) -> set[str]:
    """Write values over tensors of a safetensors file, in the dtypes that they have there.

    The file stays as it is otherwise and is not read, because it may hold gigabytes.

    Args:
        file: it can be written.
        value_of: gives a tensor's new value by its name in the file, or None if it stays. Only one value is held.

    Returns:
        The names in the file of the tensors written.
    """
    written = set()
    with file.open("r+b") as weights:
        start, tensors = tensors_of(weights)
        for name, entry in tensors.items():
            if (value := value_of(name)) is not None:
                begin, end = entry["data_offsets"]
                values = (
                    value.detach().to("cpu", _DTYPES[entry["dtype"]]).contiguous().reshape(-1).view(torch.uint8).numpy()
                )
                assert list(value.shape) == entry["shape"], f"{file}: {name}"
                assert values.nbytes == end - begin, f"{file}: {name}"
                weights.seek(start + begin)
                weights.write(values.data)
                written.add(name)
    return written


def copy_weights(start: Path, out: Path, value_of: Callable[[str], torch.Tensor | None]) -> set[str]:
    """Copy a folder's weight files and their index into another with new values over some tensors, see `overwrite`."""
    written = set()
    for file in weight_files(start):
        target = out / file.relative_to(start)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)  # the original may be read-only
        written |= overwrite(target, value_of)
        shutil.copymode(file, target)
    if not (start / WHOLE).is_file():  # else transformers reads no index
        shutil.copy2(start / INDEX, out / INDEX)
    return written


def save_tensors(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that whoever may read new files of this process may read.

    `save_file` alone makes it readable by its owner only.
    """
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata=metadata)
    file.chmod(mode)


def _reader(opened: safe_open, name: str) -> Callable[[], torch.Tensor]:
    return lambda: opened.get_tensor(name)


def write_weights(entries: Iterable[Entry], folder: Path, *, max_shard_size: int | str = "4GB") -> tuple[int, int]:
    """Write `model.safetensors`, or several files with their index, as transformers does.

    A file holds at most `max_shard_size`, unless a single tensor is larger. In the index `total_parameters` counts all
    stored values, which for the packaged tower include batch norm's running means.

    Tensors of mapped files go through the system's cache to the new file. So the process's own memory holds at most the
    computed tensors of one file.

    Returns:
        The number of tensors, and their bytes.
    """
    tensors = {entry.name: entry for entry in entries}
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda entry: entry.bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    parameters = 0
    for file, names in split.filename_to_tensors.items():
        shard = {name: tensors[name].read().contiguous() for name in names}
        save_tensors(shard, folder / file, metadata={"format": "pt"})
        parameters += sum(value.numel() for value in shard.values())
        del shard  # before the next one is read
    if split.is_sharded:
        metadata = {"total_parameters": parameters, **split.metadata}
        index = json.dumps({"metadata": metadata, "weight_map": split.tensor_to_filename}, indent=2, sort_keys=True)
        (folder / INDEX).write_text(index + "\n", "utf-8")
    return len(tensors), split.metadata["total_size"]

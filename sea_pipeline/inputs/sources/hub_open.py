"""Open datasets of Hugging Face's `datasets` by name, and say in a line why one cannot be opened."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import require
from sea_pipeline.core.progress import progress_bars_if_heard

PREFIX = "hf:"


def split_name(text: str) -> tuple[str, str]:
    """Split `NAME[[:CONFIG]:SPLIT]` into the name and what follows it.

    The name of a folder and the slice of a split may have colons, too.
    """
    positions = [position for position, character in enumerate(text) if character == ":"]
    for position in (len(text), *reversed(positions)):
        if Path(text[:position]).exists():
            return text[:position], text[position + 1 :]
    name, _, split = text.partition(":")
    return name, split


def load(name: str, split: str, *, streaming: bool) -> Any:  # noqa: ANN401 - datasets has no types
    """Open a split, `[CONFIG:]SPLIT`, as a `Dataset` or, to stream it, as an `IterableDataset`.

    Raises:
        UserError: it cannot be opened, or the package is not installed.
    """
    datasets = require("datasets", "data")
    with _loading(name):
        if not is_saved(name):
            config, split = _configured(split)
            return datasets.load_dataset(full_name(name), config, split=split, streaming=streaming)
        saved = datasets.load_from_disk(full_name(name))
        rows = saved[split] if isinstance(saved, dict) else saved
        return rows.to_iterable_dataset() if streaming else rows


def _configured(split: str) -> tuple[str | None, str]:
    """Split `[CONFIG:]SPLIT` at a colon that is not of a slice such as `train[2:5]`."""
    config, colon, rest = split.partition(":")
    return (config, rest) if colon and "[" not in config else (None, split)


def only_split(name: str) -> str:
    """Return the split that is read if none is named: `train`, or the only one.

    Raises:
        UserError: there are several others, or the dataset cannot be opened.
    """
    datasets = require("datasets", "data")
    with _loading(name):
        if is_saved(name):
            saved = datasets.load_from_disk(full_name(name))
            splits = list(saved) if isinstance(saved, dict) else ["train"]
        else:
            splits = datasets.get_dataset_split_names(full_name(name))
    if len(splits) == 1 or "train" in splits:
        return "train" if "train" in splits else str(splits[0])
    raise UserError(
        f"--images {PREFIX}{name}: has the splits {', '.join(splits)}; give one: {PREFIX}{name}:{splits[0]}"
    )


def full_name(name: str) -> str:
    """Return the absolute path of a folder, because `datasets` takes `data:x` for a URL, or else the hub's name."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def is_saved(name: str) -> bool:
    """Tell whether a name is a folder that `save_to_disk` wrote."""
    return any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json"))


@contextmanager
def _loading(name: str) -> Iterator[None]:
    libraries = [require(each, "data") for each in ("datasets", "huggingface_hub.utils")]
    try:
        with progress_bars_if_heard(*libraries):
            yield
    except Exception as error:  # from a dataset's files, the hub or the network
        if "Config name is missing" in str(error) and (said := _configurations(name)):
            raise UserError(said) from error
        hint = ""
        if isinstance(error, ConnectionError | TimeoutError):
            hint = "; is this machine offline? A folder will do: --images hf:FOLDER"
        elif Path(name).exists() and re.search(r"::|[\[\]*?]", full_name(name)):
            hint = "; datasets takes :: and [ ] * ? in a path for more than a name: rename the folder"
        reason = f"no split {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"--images {PREFIX}{name}: cannot be loaded: {reason}{hint}") from error


def _configurations(name: str) -> str | None:
    """Say which configurations a dataset has, and how to ask for the first, or None if it cannot be read."""
    datasets = require("datasets", "data")
    try:
        names = datasets.get_dataset_config_names(full_name(name))
        splits = datasets.get_dataset_split_names(full_name(name), names[0])
    except Exception:  # as in `_loading`, whose own error says enough
        return None
    split = "train" if "train" in splits else splits[0]
    asked = f"{PREFIX}{name}"
    return f"--images {asked}: has the configurations {', '.join(names)}; give one: {asked}:{names[0]}:{split}"


def data_files(name: str, split: str) -> list[str]:
    """List the files that `datasets` reads a split from; not for what `is_saved`."""
    config, split = _configured(split)
    files = require("datasets", "data").load_dataset_builder(full_name(name), config).config.data_files or {}
    return [str(file) for file in files.get(split, ())]

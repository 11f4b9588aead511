"""Datasets of Hugging Face's `datasets`: from the hub, or from a folder."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from sea_pipeline.errors import UserError, one_line
from sea_pipeline.optional import require
from sea_pipeline.pixels import BadImageError, read_file
from sea_pipeline.samples import Sample
from sea_pipeline.sources.base import ROW_NUMBERS, Found, candidates, chosen_ids, image_column, named, row_id
from sea_pipeline.sources.forward import Forward
from sea_pipeline.storage.patience import PassingError, may_pass, patiently

PREFIX = "hf:"
STREAM = "hf-stream:"
_BEHIND = 64
"""Rows before the one asked for that a stream begins with: threads ask nearly in order."""


class HubSource:
    """Reads rows; a `uri` is the row's number, from 0."""

    def __init__(self, location: str) -> None:
        self.random_access = not location.startswith(STREAM)
        self.readers = 1
        self._name, self._split = split_name(location.partition(":")[2])
        rows = _load(self._name, self._split, streaming=not self.random_access)
        column = _image_column(rows.features, self._name)
        self._rows = _encoded(rows, column)
        self._column = column
        self._forward = None if self.random_access else Forward(self._begin, _size)

    def read(self, uri: str) -> bytes:
        """See `Source`."""
        row = int(uri)
        with _faults(self._name):
            try:
                cell = (self._rows if self._forward is None else self._forward)[row][self._column]
            except IndexError as error:
                raise BadImageError("read", "NoSuchRow", f"the split {self._split} has no row {row:,}") from error
            data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
            if data is None and path:
                return _file(path, self._name)
        if not isinstance(data, bytes):
            raise BadImageError("read", "NoBytes", f"row {row:,}: expected the image's bytes, or a file; found neither")
        return data

    def _begin(self, row: int) -> tuple[int, Iterator[dict[str, Any]]]:
        first = max(0, row - _BEHIND)
        return first, iter(self._rows.skip(first) if first else self._rows)


def _size(row: Mapping[str, Any]) -> int:
    (cell,) = row.values()
    return len((cell.get("bytes") if isinstance(cell, dict) else cell) or b"")


def list_hub(text: str, id_column: str | None, limit: int | None, *, streaming: bool) -> Found:
    """The rows of a split, `NAME[:SPLIT]`, by the first id column whose values all differ, else their row numbers.

    A stream's columns of ids are read in a pass of their own, its images not yet; with `limit`, only so far.

    Raises:
        UserError: no such dataset, split or column, or the hub cannot be reached.
    """
    name, split = split_name(text)
    split = split or _only_split(name)
    rows = _load(name, split, streaming=streaming)
    shown = f"{PREFIX}{name}:{split}"
    image = _image_column(rows.features, shown)
    others = [column for column in rows.features if column != image]
    names = candidates(others, id_column, shown)
    with _faults(shown):
        if streaming:
            read = list(islice(rows.select_columns(names), limit)) if names else []
            ids = chosen_ids({column: _of(read, column) for column in names}, id_column)
            count = len(read) if names else _length(rows, image, split, limit)
        else:
            columns: dict[str, Callable[[], list[Any]]] = {
                column: lambda column=column: list(rows[column])  # type: ignore[misc]
                for column in names
            }
            if id_column is None:
                columns["the images' own path"] = lambda: _paths(_encoded(rows, image), image, name)
            ids, count = chosen_ids(columns, id_column), len(rows)
    shown_ids = ids[1] if ids else [row_id(row) for row in range(count)]
    samples = [
        named(image_id, str(row), "image")
        if image_id is not None
        else Sample(f"row {row}", str(row), f"expected an id in the column {id_column!r}; found none")
        for row, image_id in enumerate(shown_ids)
    ]
    root = f"{STREAM if streaming else PREFIX}{_place(name)}:{split}"
    return Found(root, samples, ids[0] if ids else ROW_NUMBERS)


def split_name(text: str) -> tuple[str, str]:
    """`NAME[:SPLIT]` as its parts; a folder's name may have colons, a split's slice may, too."""
    places = [place for place, character in enumerate(text) if character == ":"]
    for place in (len(text), *reversed(places)):
        if Path(text[:place]).exists():
            return text[:place], text[place + 1 :]
    name, _, split = text.partition(":")
    return name, split


def _load(name: str, split: str, *, streaming: bool) -> Any:  # noqa: ANN401 - datasets has no types
    datasets = require("datasets", "data")
    with _loading(name):
        if not _is_saved(name):
            return datasets.load_dataset(_place(name), split=split, streaming=streaming)
        saved = datasets.load_from_disk(_place(name))
        rows = saved[split] if isinstance(saved, dict) else saved
        return rows.to_iterable_dataset() if streaming else rows


def _only_split(name: str) -> str:
    datasets = require("datasets", "data")
    with _loading(name):
        if _is_saved(name):
            saved = datasets.load_from_disk(_place(name))
            splits = list(saved) if isinstance(saved, dict) else ["train"]
        else:
            splits = datasets.get_dataset_split_names(_place(name))
    if len(splits) == 1 or "train" in splits:
        return "train" if "train" in splits else str(splits[0])
    raise UserError(
        f"--images {PREFIX}{name}: has the splits {', '.join(splits)}; give one: {PREFIX}{name}:{splits[0]}"
    )


def _place(name: str) -> str:
    """A folder from the root on, as `datasets` takes `data:x` for a URL; else what the hub calls it."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def _is_saved(name: str) -> bool:
    return any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json"))


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what a dataset's files, the hub and the network raise
        hint = ""
        if isinstance(error, ConnectionError | TimeoutError):
            hint = "; is this machine offline? A folder will do: --images hf:FOLDER"
        elif Path(name).exists() and re.search(r"::|[\[\]*?]", _place(name)):
            hint = "; datasets takes :: and [ ] * ? in a path for more than a name: rename the folder"
        reason = f"no split {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"--images {PREFIX}{name}: cannot be loaded: {reason}{hint}") from error


@contextmanager
def _faults(shown: str) -> Iterator[None]:
    """Turns what the network's packages raise into the `OSError` that a shard is tried again for."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if may_pass(error):
            raise PassingError(f"{shown}: {type(error).__name__}: {error}") from error
        raise


def _image_column(features: Any, shown: str) -> str:  # noqa: ANN401
    if features is None:
        raise UserError(f"{shown}: expected columns that are known before it is read; found none")
    pictures = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    plain = [name for name, kind in features.items() if _is_bytes(kind) or _is_bytes(_struct(kind).get("bytes"))]
    column = image_column(pictures or plain, shown)
    if column is None:
        raise UserError(f"{shown}: expected a column of images; found {', '.join(features)}")
    return column


def _is_bytes(kind: Any) -> bool:  # noqa: ANN401
    return getattr(kind, "dtype", None) in ("binary", "large_binary")


def _struct(kind: Any) -> Mapping[str, Any]:  # noqa: ANN401
    return kind if isinstance(kind, dict) else {}


def _encoded(rows: Any, column: str) -> Any:  # noqa: ANN401
    """The rows with images as the bytes or the path that are stored."""
    rows = rows.select_columns([column])
    if type(rows.features[column]).__name__ != "Image":
        return rows
    return rows.cast_column(column, require("datasets", "data").Image(decode=False))


def _of(read: list[dict[str, Any]], column: str) -> Callable[[], list[Any]]:
    return lambda: [row[column] for row in read]


def _length(rows: Any, image: str, split: str, limit: int | None) -> int:  # noqa: ANN401
    known = (rows.info.splits or {}).get(split)
    if known is not None and known.num_examples:
        return int(known.num_examples if limit is None else min(limit, known.num_examples))
    light = [name for name, kind in rows.features.items() if type(kind).__name__ == "Value" and name != image]
    return sum(1 for _ in islice(rows.select_columns(light[:1]) if light else _encoded(rows, image), limit))


def _paths(rows: Any, column: str, name: str) -> list[Any]:  # noqa: ANN401
    """The images' own paths, from the dataset's folder on, or their last part; not their bytes."""
    kind = rows.features[column]
    if type(kind).__name__ != "Image" and "path" not in _struct(kind):
        return [None]
    arrow = rows.with_format("arrow")
    paths = [path for batch in arrow.iter(1000) for path in batch[column].combine_chunks().field("path").to_pylist()]
    folder = Path(name).absolute()
    return [_relative(path, folder) if path else None for path in paths]


def _relative(path: str, folder: Path) -> str:
    if Path(path).is_relative_to(folder):
        return Path(path).relative_to(folder).as_posix()
    return path.rsplit("/", 1)[-1] if path.startswith("/") or "://" in path else path


def _file(path: str, name: str) -> bytes:
    """A file beside the data: below the dataset's folder, in the caches of `datasets`, or on the hub."""
    if path.startswith("hf://") or "::hf://" in path:
        fsspec = require("fsspec", "data")

        def whole() -> bytes:
            with fsspec.open(path, "rb") as file:
                return bytes(file.read())

        return patiently(whole, path)
    import datasets.config
    import huggingface_hub.constants

    caches = datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE
    full = Path(path).resolve()
    if not any(full.is_relative_to(Path(root).resolve()) for root in (name, *caches)):
        raise BadImageError("read", "OutsideRoot", "the row names a file outside the dataset's folder")
    return read_file(full)

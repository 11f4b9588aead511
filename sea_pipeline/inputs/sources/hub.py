"""List and read datasets of Hugging Face's `datasets`, from the hub or from a folder."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import require
from sea_pipeline.core.parallel import ThreadPool, prefetched_map
from sea_pipeline.inputs.pixels import BadImageError, read_file
from sea_pipeline.inputs.samples import Version
from sea_pipeline.inputs.sources.base import NO_IMAGE, ROW_NUMBERS, FoundImages, chosen_ids, row_id, row_sample
from sea_pipeline.inputs.sources.columns import PATHS_ALONE, Leaf, id_columns, image_leaf, no_images, path_leaf
from sea_pipeline.inputs.sources.forward import Forward, out_of_order
from sea_pipeline.inputs.sources.hub_open import PREFIX as PREFIX
from sea_pipeline.inputs.sources.hub_open import data_files, full_name, is_saved, load, only_split, split_name
from sea_pipeline.inputs.sources.values import NoId, bytes_of, id_texts, is_text, plain
from sea_pipeline.inputs.sources.versions import Versions, changed_error, is_of_this_host, keep_version, local_versions
from sea_pipeline.storage.paths import lies_in
from sea_pipeline.storage.retry import PassingError, may_pass, patiently

STREAM = "hf-stream:"
_FOOTERS = 16
"""Parquet files whose rows are counted at once."""
_BYTES_OF = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}


class _Cell(NamedTuple):
    data: bytes | None
    path: str | None
    damage: str | None = None


class HubSource:
    """Reads rows of a dataset; a `uri` is the row's number, from 0."""

    def __init__(self, location: str, versions: Mapping[str, Version]) -> None:
        self.random_access = not location.startswith(STREAM)
        self.readers = 1
        self._name, self._split = split_name(location.partition(":")[2])
        rows = load(self._name, self._split, streaming=not self.random_access)
        self._versions = dict(versions)
        # `datasets` prepares changed files under new names, so names show a change. Another host's names always differ.
        if is_of_this_host(versions) and versions.keys() != _versions(rows, self._name, self._split).keys():
            raise changed_error(PREFIX + self._name)
        self._leaf = _image_leaf(rows.features, self._name)
        self._rows = _arrow(rows, [self._leaf.column])
        self._forward = None if self.random_access else Forward(self._begin, _size)

    def read(self, uri: str) -> bytes:
        """See `Source`."""
        row = int(uri)
        with _faults(self._name):
            try:
                cell = self._cell(self._rows[row]) if self._forward is None else self._forward[row]
            except IndexError as error:
                raise BadImageError("read", "NoSuchRow", f"the split {self._split} has no row {row:,}") from error
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise BadImageError("read", "DamagedTable", f"row {row:,}: {one_line(error)}") from error
            if cell.damage:
                raise BadImageError("read", "DamagedTable", f"row {row:,}: {cell.damage}")
            if cell.data is None and cell.path:
                return _file(cell.path, self._name)
        if cell.data is None:
            raise BadImageError("read", "NoBytes", f"row {row:,}: expected the image's bytes, or a file; found neither")
        return cell.data

    def where(self, uri: str) -> tuple[str, int]:
        """See `Source`."""
        return "", int(uri)

    def refuse_changed(self, uris: Sequence[str]) -> None:
        """See `Source`."""
        for name, found in local_versions(self._versions).items():
            keep_version(self._versions, name, found, name)

    def _begin(self, row: int) -> tuple[int, Iterator[_Cell]]:
        first = max(0, row - out_of_order())
        return first, map(self._cell, self._rows.skip(first) if first else self._rows)

    def _cell(self, row: pa.Table) -> _Cell:
        """Copy a row's cell, because a slice of an Arrow table keeps all of the table in memory.

        Damage is kept in the cell, so that it does not end a stream of rows.
        """
        try:
            (data,) = (data for values in _values(row, self._leaf) for data in bytes_of(values))
            path = path_leaf(row.schema, self._leaf) if data is None else None
            text = id_texts(list(_values(row, path)))[0] if path else None
        except (pa.ArrowException, UnicodeDecodeError) as error:
            return _Cell(None, None, one_line(error))
        return _Cell(data, text if isinstance(text, str) else None)


def _size(cell: _Cell) -> int:
    return len(cell.data or b"")


def list_hub(
    text: str, id_column: str | None, limit: int | None, left_out: Counter[str], *, streaming: bool
) -> FoundImages:
    """List the rows of a split, `NAME[[:CONFIG]:SPLIT]`.

    Their ids are the first id column whose values all differ, or else their row numbers. A stream's id columns are read
    in a pass of their own, without the images, and only as far as `limit`. `left_out` counts rows without an image,
    except those of a stream, whose images would have to be read for it.

    Raises:
        UserError: no such dataset, split or column, or the hub cannot be reached.
    """
    name, split = split_name(text)
    if not name:
        raise UserError(f"--images {PREFIX}{text}: expected a name behind {PREFIX}; found none")
    split = split or only_split(name)
    rows = load(name, split, streaming=streaming)
    shown = f"{PREFIX}{name}:{split}"
    image = _image_leaf(rows.features, shown)
    names = id_columns(rows.features.arrow_schema, id_column, shown)
    names = [column for column in names if column != image.column or column == id_column]
    versions = _versions(rows, name, split)
    with _as_a_whole(shown), _faults(shown):
        if streaming:
            read = _columns(rows, names, limit) if names else {}
            found = chosen_ids({column: values.copy for column, values in read.items()}, id_column)
            held = list(range(len(read[names[0]]) if names else _length(rows, image.column, name, split, limit)))
        else:
            empty = _empty(rows, image)
            held = [row for row in range(len(rows)) if row not in empty]
            left_out[NO_IMAGE] += len(empty)
            columns: dict[str, Callable[[], list[str | NoId]]] = {
                column: lambda column=column: _columns(rows, [column])[column]  # type: ignore[misc]
                for column in names
            }
            if id_column is None and (path := path_leaf(rows.features.arrow_schema, image)):
                columns["the images' own path"] = lambda: _paths(rows, path, name)
            found = chosen_ids(columns, id_column, held)
    column, ids = found or (ROW_NUMBERS, list(map(row_id, held)))
    samples = [row_sample(image_id, str(row), f"row {row}", column) for row, image_id in zip(held, ids, strict=True)]
    root = f"{STREAM if streaming else PREFIX}{full_name(name)}:{split}"
    return FoundImages(root, samples, column, versions=versions)


@contextmanager
def _as_a_whole(shown: str) -> Iterator[None]:
    """Turn errors of reading whole columns into one line."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:  # on a dataset's files its packages raise any kind of exception
        raise UserError(f"{shown}: cannot be read: {one_line(error)}") from error


@contextmanager
def _faults(shown: str) -> Iterator[None]:
    """Turn errors of the network's packages into the `OSError` after which a shard is tried again."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if may_pass(error):
            raise PassingError(f"{shown}: {type(error).__name__}: {error}") from error
        raise


def _image_leaf(features: Any, shown: str) -> Leaf:  # noqa: ANN401
    if features is None:
        raise UserError(f"{shown}: expected columns that are known before it is read; found none")
    schema = features.arrow_schema
    pictures = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    leaf = image_leaf(pa.schema([schema.field(name) for name in pictures or features]), shown)
    if leaf is None:
        raise UserError(f"{shown}: {no_images(schema)}")
    return leaf


def _arrow(rows: Any, columns: list[str]) -> Any:  # noqa: ANN401
    """Select columns in Arrow's form, in which images are the stored bytes or path, and text need not be UTF-8."""
    return rows.select_columns(columns).with_format("arrow")


def _columns(rows: Any, names: list[str], limit: int | None = None) -> dict[str, list[str | NoId]]:  # noqa: ANN401
    """Read columns of ids, of the first `limit` rows."""
    some = rows if limit is None else rows.take(limit)
    batches = list(_arrow(some, names).iter(1000))
    return {name: id_texts([chunk for batch in batches for chunk in _values(batch, Leaf(name))]) for name in names}


def _empty(rows: Any, image: Leaf) -> set[int]:  # noqa: ANN401
    """Find the rows that hold neither an image's bytes nor its path, without reading bytes."""
    found: set[int] = set()
    start = 0
    for batch in _arrow(rows, [image.column]).iter(1000):
        with suppress(pa.ArrowException):  # reading the rows says what is damaged
            for chunk in batch.column(image.column).chunks:
                chunk.validate()
            leaves = [image, *filter(None, [path_leaf(batch.schema, image)])]
            nulls = [pa.chunked_array(list(leaf.of(batch))).is_null().to_numpy() for leaf in leaves]
            found.update((start + np.flatnonzero(np.all(nulls, axis=0))).tolist())
        start += batch.num_rows
    return found


def _values(rows: pa.Table, leaf: Leaf) -> Iterator[pa.Array]:
    """Yield the values of a column, after checking that each of them lies inside its buffers.

    Arrow trusts the offsets of a file that is mapped into memory, and a damaged one ends the process.

    Raises:
        pa.ArrowInvalid: a value lies outside its buffers.
    """
    for chunk in rows.column(leaf.column).chunks:
        chunk.validate()
    for values in leaf.of(rows):
        stored = plain(values)
        is_letters = is_text(stored.type) and not pa.types.is_string_view(stored.type)
        # Text is checked as bytes, because text that is not UTF-8 must cost only its own row.
        (stored.view(_BYTES_OF.get(stored.type, stored.type)) if is_letters else stored).validate(full=True)
        yield values


def _versions(rows: Any, name: str, split: str) -> Versions:  # noqa: ANN401
    stored = load(name, split, streaming=False) if is_saved(name) else rows
    files = [file["filename"] for file in getattr(stored, "cache_files", [])]
    if not files and Path(name).exists():  # a stream
        files = data_files(name, split)
    return local_versions(files)


def _length(rows: Any, image: str, name: str, split: str, limit: int | None) -> int:  # noqa: ANN401
    """Count the rows of a stream in its files, because a dataset's card may say another number."""
    if is_saved(name):
        count = len(load(name, split, streaming=False))
        return count if limit is None else min(count, limit)
    files = data_files(name, split)
    if files and all(file.endswith(".parquet") for file in files):
        count = 0
        with ThreadPool(_FOOTERS) as pool:
            for rows_of_file in prefetched_map(pool, _table_rows, files, _FOOTERS):
                count += rows_of_file
                if limit is not None and count >= limit:
                    return limit
        return count
    light = [column for column, kind in rows.features.items() if type(kind).__name__ == "Value" and column != image]
    return sum(1 for _ in islice(rows.select_columns(light[:1]) if light else _arrow(rows, [image]), limit))


def _table_rows(path: str) -> int:
    def count() -> int:
        with require("fsspec", "data").open(path, "rb") as file:
            return int(pq.read_metadata(file).num_rows)

    return patiently(count, path)


def _paths(rows: Any, path: Leaf, name: str) -> list[str | NoId]:  # noqa: ANN401
    """Read the images' own paths, relative to the dataset's folder or only their last part, without the bytes."""
    batches = _arrow(rows, [path.column]).iter(1000)
    folder = Path(name).absolute()
    texts = (text for batch in batches for text in id_texts(list(_values(batch, path))))
    return [_relative(text, folder) if isinstance(text, str) else text for text in texts]


def _relative(path: str, folder: Path) -> str:
    if Path(path).is_relative_to(folder):
        return Path(path).relative_to(folder).as_posix()
    return path.rsplit("/", 1)[-1] if path.startswith("/") or "://" in path else path


def _file(path: str, name: str) -> bytes:
    """Read a file that a row names, below the dataset's folder, in the caches of `datasets`, or on the hub.

    Raises:
        BadImageError: it lies elsewhere, or cannot be read.
    """
    if path.startswith("hf://") or "::hf://" in path:
        fsspec = require("fsspec", "data")

        def whole() -> bytes:
            with fsspec.open(path, "rb") as file:
                return bytes(file.read())

        return patiently(whole, path)
    import datasets.config
    import huggingface_hub.constants

    caches = datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE
    # The folder's own links may lead out of it, as in a snapshot of the hub's cache.
    written = Path(os.path.abspath(path))  # noqa: PTH100 - a Path keeps `..`
    is_below = written.is_relative_to(os.path.abspath(name))  # noqa: PTH100
    if not is_below and not any(lies_in(path, root) for root in (name, *caches)):
        raise BadImageError("read", "OutsideRoot", f"the row names a file outside the dataset's folder; {PATHS_ALONE}")
    return read_file(written)

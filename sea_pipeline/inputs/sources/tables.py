"""List and read images that Parquet files hold as bytes, in Hugging Face's struct or in a plain binary column."""

import bisect
import errno
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate, repeat
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.inputs.pixels import MAX_FILE_BYTES, PASSING, BadImageError, begun_format
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.inputs.sources.base import (
    NO_IMAGE,
    ROW_NUMBERS,
    FoundImages,
    chosen_ids,
    row_id,
    row_place,
    row_sample,
    shown_file,
)
from sea_pipeline.inputs.sources.columns import PATHS_ALONE, Leaf, id_columns, image_leaf, no_images, path_leaf
from sea_pipeline.inputs.sources.files import Files, reading
from sea_pipeline.inputs.sources.forward import Forward
from sea_pipeline.inputs.sources.order import OPEN_FILES
from sea_pipeline.inputs.sources.values import FAULTS, MISSING, NoId, bytes_of, id_texts
from sea_pipeline.inputs.sources.versions import ChangedError
from sea_pipeline.storage.parquet import refuse_other_counts
from sea_pipeline.storage.retry import StoreError

PREFIX = "parquet:"
_BUFFER = 1 << 20
"""Bytes of a column that are read ahead, so that a large row group is never held as a whole."""
_BATCH = 8
"""Rows decoded at a time."""


class _Damage(NamedTuple):
    """The reason why a row has no bytes."""

    reason: str
    error: str = "DamagedTable"


_Cell = bytes | _Damage


class TableSource:
    """Reads rows of tables; a `uri` is `FILE#ROW`, from 0. They are read fastest in the order of the files."""

    readers = 1
    random_access = True

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._kept = lru_cache(maxsize=OPEN_FILES)(partial(_forward, files))

    def read(self, uri: str) -> bytes:
        """See `Source`."""
        name, row = row_place(uri)
        try:
            cell = self._rows(name)[row]
        except IndexError:
            cell = _Damage("there are not so many rows any more")
        if isinstance(cell, _Damage):
            raise BadImageError("read", cell.error, f"{name}, row {row}: {cell.reason}")
        return cell

    def where(self, uri: str) -> tuple[str, int]:
        """See `Source`."""
        return row_place(uri)

    def refuse_changed(self, uris: Sequence[str]) -> None:
        """See `Source`."""
        self._files.refuse_changed([row_place(uri)[0] for uri in uris])

    def _rows(self, name: str) -> Forward[_Cell]:
        with self._lock:
            try:
                return self._kept(name)
            except (ChangedError, StoreError):
                raise
            except (*FAULTS, UserError) as error:
                _refuse_passing(error)
                raise BadImageError("read", type(error).__name__, f"{name}: {one_line(error)}") from error


def _forward(files: Files, name: str) -> Forward[_Cell]:
    table = _opened(files.open(name))
    column = _image_leaf(table, name)
    if column is None:
        raise UserError("expected a column of images; found none any more")
    starts = _starts(table)

    def begin(row: int) -> tuple[int, Iterator[_Cell]]:
        group = bisect.bisect(starts, row) - 1
        if group >= len(starts) - 1:
            raise IndexError(row)
        return starts[group], _cells(table, column, group, starts[group + 1] - starts[group])

    return Forward(begin, _size, lambda row: starts[bisect.bisect(starts, row) - 1])


def _starts(table: pq.ParquetFile) -> list[int]:
    """Return the first row of each row group, and the number of rows as the last entry."""
    groups = range(table.metadata.num_row_groups)
    return [0, *accumulate(table.metadata.row_group(group).num_rows for group in groups)]


def _cells(table: pq.ParquetFile, column: Leaf, group: int, rows: int) -> Iterator[_Cell]:
    """Yield the rows of a row group.

    From a damaged place on, every row is the damage.
    """
    given = 0
    lacks: list[_Damage] = []
    try:
        for values in _column(table, column, [group]):
            for cell in bytes_of(values):
                if cell is None:
                    lacks = lacks or _lacks(table, column, group, rows)
                yield lacks[given] if cell is None else cell
                given += 1
    except FAULTS as error:
        _refuse_passing(error)
        if isinstance(error, PermissionError):
            damage = _Damage(one_line(error), "PermissionError")
        else:
            damage = _Damage(f"row group {group} is damaged: {one_line(error)}")
        yield from repeat(damage, rows - given)


def _lacks(table: pq.ParquetFile, column: Leaf, group: int, rows: int) -> list[_Damage]:
    """Say for each row of a row group what it has if it has no bytes."""
    path = path_leaf(table.schema_arrow, column)
    paths = id_texts(list(_column(table, path, [group]))) if path else [MISSING] * rows
    said = "expected the image's bytes; found "
    return [
        _Damage(said + (f"its path alone; {PATHS_ALONE}" if isinstance(text, str) else "none"), "NoBytes")
        for text in paths
    ]


def _size(cell: _Cell) -> int:
    return len(cell) if isinstance(cell, bytes) else 0


def _refuse_passing(error: Exception) -> None:
    """Raise an error that is the machine's or the network's fault.

    What Arrow itself finds wrong has no `errno`. It also lacks memory if damage claims any number of bytes.
    """
    if isinstance(error, OSError) and error.errno in PASSING:
        raise error
    asked = re.search(r"size (\d+)", str(error)) if isinstance(error, pa.ArrowMemoryError) else None
    if asked and int(asked[1]) <= MAX_FILE_BYTES:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error


def is_table_of_images(files: Files, name: str) -> bool:
    """Tell whether a Parquet file has a column of images' bytes.

    A file that cannot be opened has none.
    """
    shown = shown_file(files.root, name)
    with reading(shown), files.open(name) as file:
        try:
            return _image_leaf(pq.ParquetFile(file), shown) is not None
        except FAULTS as error:
            _refuse_passing(error)
            return False


def list_tables(files: Files, names: Sequence[str], id_column: str | None, left_out: Counter[str]) -> FoundImages:
    """List the images of Parquet files.

    Their ids are the first id column whose values all differ, or else their row numbers.

    Raises:
        UserError: a column that is asked for is not there; the only file is no Parquet.
    """
    names = sorted(names)
    pieces: dict[str, list[int]] = {}
    empty: dict[str, set[int]] = {}
    damaged: dict[str, str] = {}
    columns: list[Leaf] | None = None
    for name in names:
        where = shown_file(files.root, name)
        with reading(where), files.open(name) as file:
            try:
                table = _opened(file)
                if (image := _image_leaf(table, where)) is None:
                    damaged[name] = no_images(table.schema_arrow)
                    continue
                there = _id_leaves(table, image, id_column, where)
                empty[name] = _empty(table, image)
            except FAULTS as error:
                _refuse_passing(error)
                damaged[name] = f"cannot be read: {one_line(error)}"
                continue
        pieces[name] = _starts(table)
        columns = there if columns is None else [leaf for leaf in columns if leaf in there]
    if len(names) == 1 and damaged:
        raise UserError(f"{shown_file(files.root, names[0])}: {damaged[names[0]]}")
    rows = [(name, row) for name, starts in pieces.items() for row in range(starts[-1])]
    held = [number for number, (name, row) in enumerate(rows) if row not in empty[name]]
    readers = {str(leaf): partial(_ids, files, pieces, leaf) for leaf in columns or []}
    places = [rows[number] for number in held]
    chosen = chosen_ids(readers, id_column, held)
    column, ids = chosen or ("", [_row_name(*place, len(names) > 1) for place in places])
    samples = [
        row_sample(image_id, f"{name}#{row}", f"{name}#{row}", column)
        for image_id, (name, row) in zip(ids, places, strict=True)
    ]
    left_out[NO_IMAGE] += len(rows) - len(held)
    samples += [Sample(name, name, problem) for name, problem in damaged.items()]
    said = f"the column {column}" if chosen else ROW_NUMBERS
    return FoundImages(PREFIX + files.root, samples, said, pieces, files.versions)


def _row_name(name: str, row: int, is_of_several: bool) -> str:
    return f"{name}/{row_id(row)}" if is_of_several else row_id(row)


def _image_leaf(table: pq.ParquetFile, shown: str) -> Leaf | None:
    """Find what holds the images' bytes by names and types or, if these are in doubt, by the first rows."""

    def begins_as_images(leaf: Leaf) -> bool:
        groups = [0] if table.num_row_groups else []
        batches = (list(bytes_of(values)) for values in _column(table, leaf, groups))
        cells = next((found for batch in batches if (found := [cell for cell in batch if cell is not None])), [])
        return 2 * sum(begun_format(cell) is not None for cell in cells) > len(cells)

    return image_leaf(table.schema_arrow, shown, begins_as_images)


def _empty(table: pq.ParquetFile, image: Leaf) -> set[int]:
    """Find the rows whose struct of bytes and path is null, by reading the paths alone.

    The footer's counts would say whether there are any, but a damaged one ends the process.
    """
    if (path := path_leaf(table.schema_arrow, image)) is None:
        return set()
    found: set[int] = set()
    for group, start in enumerate(_starts(table)[:-1]):
        try:
            for batch in table.iter_batches(65_536, row_groups=[group], columns=[str(path)], use_threads=False):
                nulls = batch.column(image.column).is_null().to_numpy(zero_copy_only=False)
                found.update((start + np.flatnonzero(nulls)).tolist())
                start += batch.num_rows
        except FAULTS as error:  # reading the rows says so
            _refuse_passing(error)
    return found


def _id_leaves(table: pq.ParquetFile, image: Leaf, id_column: str | None, shown: str) -> list[Leaf]:
    """List the columns that ids of a table of images may come from, the best first."""
    schema = table.schema_arrow
    path = path_leaf(schema, image) if id_column is None else None
    return [*(Leaf(name) for name in id_columns(schema, id_column, shown)), *([path] if path else [])]


def _ids(files: Files, pieces: Mapping[str, Sequence[int]], column: Leaf) -> list[str | NoId]:
    ids: list[str | NoId] = []
    for name, starts in pieces.items():
        shown = shown_file(files.root, name)
        with reading(shown), files.open(name) as file:
            try:
                found = id_texts(list(_column(_opened(file), column)))
            except FAULTS as error:
                _refuse_passing(error)
                raise UserError(f"{shown}: the column {column} is damaged: {one_line(error)}") from error
        if len(found) != starts[-1]:
            raise UserError(
                f"{shown}: the column {column} is damaged: expected {starts[-1]:,} ids, found {len(found):,}"
            )
        ids += found
    return ids


def _column(table: pq.ParquetFile, column: Leaf, groups: list[int] | None = None) -> Iterator[pa.Array]:
    """Yield the values of a column, some rows at a time."""
    batch_size = 65_536 if groups is None else _BATCH
    for batch in table.iter_batches(batch_size, row_groups=groups, columns=[str(column)], use_threads=False):
        yield from column.of(batch)


def _opened(file: BinaryIO) -> pq.ParquetFile:
    table = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
    refuse_other_counts(table.metadata)
    return table

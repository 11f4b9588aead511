"""Images as bytes in Parquet files: Hugging Face's struct of bytes and path, or a plain binary column."""

import bisect
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate, repeat
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sea_pipeline.errors import UserError, one_line
from sea_pipeline.pixels import PASSING, BadImageError
from sea_pipeline.samples import Sample
from sea_pipeline.sources.base import ROW_NUMBERS, Found, candidates, chosen_ids, image_column, named, row_id, row_place
from sea_pipeline.sources.files import Files, reading
from sea_pipeline.sources.forward import Forward
from sea_pipeline.sources.order import OPEN_FILES

PREFIX = "parquet:"
_BUFFER = 1 << 20
"""Bytes of a column read ahead: a row group is never held as a whole, however large."""
_BATCH = 8
"""Rows decoded at a time."""


class _Damage(NamedTuple):
    """What a row has in place of bytes."""

    reason: str


_Cell = bytes | _Damage | None


class TableSource:
    """Reads rows; a `uri` is `FILE#ROW`, from 0. Rows are near in the order of the files."""

    readers = 1
    random_access = True

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Forward[_Cell]] = OrderedDict()

    def read(self, uri: str) -> bytes:
        """See `Source`."""
        name, row = row_place(uri)
        try:
            cell = self._rows(name)[row]
        except IndexError:
            cell = _Damage("there are not so many rows any more")
        if isinstance(cell, _Damage):
            raise BadImageError("read", "DamagedTable", f"{name}, row {row}: {cell.reason}")
        if cell is None:
            raise BadImageError("read", "NoBytes", f"{name}, row {row}: expected the image's bytes; found none")
        return cell

    def where(self, uri: str) -> tuple[str, int]:
        """See `Source`."""
        return row_place(uri)

    def _rows(self, name: str) -> Forward[_Cell]:
        with self._lock:
            if name not in self._open:
                try:
                    self._open[name] = _forward(self._files, name)
                except (pa.ArrowException, OSError, UserError) as error:
                    _refuse_passing(error)
                    raise BadImageError("read", type(error).__name__, f"{name}: {one_line(error)}") from error
                if len(self._open) > OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(name)
            return self._open[name]


def _forward(files: Files, name: str) -> Forward[_Cell]:
    table = _opened(files.open(name))
    column = _bytes_column(table.schema_arrow, name)
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
    """The first row of each row group, and behind the last one the number of rows."""
    groups = range(table.metadata.num_row_groups)
    return [0, *accumulate(table.metadata.row_group(group).num_rows for group in groups)]


def _cells(table: pq.ParquetFile, column: str, group: int, rows: int) -> Iterator[_Cell]:
    """The rows of a row group; behind a damaged place each of them is the damage."""
    given = 0
    try:
        for cell in _column(table, column, [group]):
            yield cell
            given += 1
    except (pa.ArrowException, OSError) as error:
        _refuse_passing(error)
        yield from repeat(_Damage(f"row group {group} is damaged: {one_line(error)}"), rows - given)


def _size(cell: _Cell) -> int:
    return len(cell) if isinstance(cell, bytes) else 0


def _refuse_passing(error: Exception) -> None:
    """Raises what is the machine's or the network's fault; what Arrow itself finds wrong has no `errno`."""
    if isinstance(error, OSError) and error.errno in PASSING:
        raise error


def is_table_of_images(files: Files, name: str) -> bool:
    """Whether a Parquet file has a column of bytes; one that cannot be opened is none."""
    with reading(f"{files.root}/{name}"), files.open(name) as file:
        try:
            return _bytes_column(_opened(file).schema_arrow, f"{files.root}/{name}") is not None
        except (pa.ArrowException, OSError) as error:
            _refuse_passing(error)
            return False


def list_tables(files: Files, names: Sequence[str], id_column: str | None, left_out: Counter[str]) -> Found:
    """The images of Parquet files, by the first id column whose values all differ, else by their row numbers.

    Raises:
        UserError: a column that is asked for is not there; the only file is no Parquet.
    """
    names = sorted(names)
    pieces: dict[str, list[int]] = {}
    damaged: dict[str, str] = {}
    columns: list[str] | None = None
    for name in names:
        with reading(f"{files.root}/{name}"), files.open(name) as file:
            try:
                table = _opened(file)
            except (pa.ArrowException, OSError) as error:
                _refuse_passing(error)
                damaged[name] = f"cannot be read: {one_line(error)}"
                continue
            image = _bytes_column(table.schema_arrow, f"{files.root}/{name}")
            if image is None:
                damaged[name] = f"expected a column of images; found {', '.join(table.schema_arrow.names)}"
                continue
            pieces[name] = _starts(table)
            there = candidates(table.schema_arrow.names, id_column, f"{files.root}/{name}")
            there += [f"{image.removesuffix('.bytes')}.path"] if image.endswith(".bytes") and not id_column else []
            columns = there if columns is None else [name for name in columns if name in there]
    if len(names) == 1 and damaged:
        raise UserError(f"{files.root}/{names[0]}: {damaged[names[0]]}")
    ids = chosen_ids({column: partial(_values, files, list(pieces), column) for column in columns or []}, id_column)
    places = [(name, row) for name, starts in pieces.items() for row in range(starts[-1])]
    shown = ids[1] if ids else [f"{name}/{row_id(row)}" if len(names) > 1 else row_id(row) for name, row in places]
    samples = [
        named(image_id, f"{name}#{row}", "image")
        if image_id is not None
        else Sample(f"{name}#{row}", f"{name}#{row}", f"expected an id in the column {id_column!r}; found none")
        for image_id, (name, row) in zip(shown, places, strict=True)
    ]
    samples += [Sample(name, name, problem) for name, problem in damaged.items()]
    return Found(PREFIX + files.root, samples, f"the column {ids[0]}" if ids else ROW_NUMBERS, pieces)


def _values(files: Files, names: Sequence[str], column: str) -> list[Any]:
    values: list[Any] = []
    for name in names:
        shown = f"{files.root}/{name}"
        with reading(shown), files.open(name) as file:
            try:
                values += _column(_opened(file), column)
            except (pa.ArrowException, OSError) as error:
                _refuse_passing(error)
                raise UserError(f"{shown}: the column {column} is damaged: {one_line(error)}") from error
    return values


def _column(table: pq.ParquetFile, column: str, groups: list[int] | None = None) -> Iterator[Any]:
    """The values of one leaf, such as `image.bytes`."""
    batch_size = 65_536 if groups is None else _BATCH
    for batch in table.iter_batches(batch_size, row_groups=groups, columns=[column], use_threads=False):
        values = batch.column(0)
        while pa.types.is_struct(values.type):
            values = values.flatten()[0]
        yield from values.to_pylist()


def _opened(file: BinaryIO) -> pq.ParquetFile:
    return pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)


def _bytes_column(schema: pa.Schema, shown: str) -> str | None:
    """The leaf that holds the images' bytes: `NAME.bytes` of a struct, or `NAME`."""
    leaves: dict[str, str] = {}
    for field in schema:
        if pa.types.is_struct(field.type) and "bytes" in (names := [child.name for child in field.type.fields]):
            if _is_bytes(field.type.field(names.index("bytes")).type):
                leaves[field.name] = f"{field.name}.bytes"
        elif _is_bytes(field.type):
            leaves[field.name] = field.name
    chosen = image_column(list(leaves), shown)
    return leaves[chosen] if chosen is not None else None


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

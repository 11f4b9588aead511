"""Read lists of images' paths from LLaVA's JSON and JSONL, CSV, TSV, plain text and Parquet."""

import base64
import csv
import io
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.inputs import llava_json
from sea_pipeline.inputs.encodings import refuse_wide
from sea_pipeline.inputs.pixels import begun_format
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.inputs.sources.base import (
    PATH_COLUMNS,
    FoundImages,
    candidates,
    chosen_ids,
    escaped,
    named,
    shown_file,
    suffix_of,
)
from sea_pipeline.inputs.sources.columns import id_columns
from sea_pipeline.inputs.sources.files import Files, reading
from sea_pipeline.inputs.sources.values import FAULTS, IMAGES, NoId, described, id_texts, is_text, text_ids
from sea_pipeline.storage.parquet import refuse_other_counts

_Columns = tuple[list[str | None], dict[str, list[str | NoId]]]
"""The paths, and the possible ids by column."""
_LONGEST_CELL = 1 << 26
"""Characters; a longer cell of a CSV is taken for a quote that is never closed."""
_CELLS = threading.Lock()
_SHORT = 256
"""Fewer characters are no picture. No name of a file is longer."""


def list_paths(
    files: Files, name: str, image_root: Files, id_column: str | None, left_out: Counter[str]
) -> FoundImages:
    """List the images that a file names.

    Args:
        files: where the list is.
        name: its name there.
        image_root: where its paths start. A path that leaves it costs only that image.
        id_column: the column that holds the ids; None for the first of `ID_COLUMNS` whose values all differ, or else
            the paths as they are written.
        left_out: counts records without an image.

    Raises:
        UserError: it cannot be read, or is no such list.
    """
    shown, suffix = shown_file(files.root, name), suffix_of(name)
    with reading(shown), files.open(name) as file:
        if suffix in (".json", ".jsonl"):
            if id_column is not None:
                raise UserError(f"--id-column {id_column}: goes with tables; LLaVA's ids are what `image` says")
            return FoundImages(image_root.root, list(_llava_images(file, shown, image_root.root, left_out)))
        read = partial(_parquet, file, shown) if suffix == ".parquet" else partial(_text, file, shown, suffix)
        paths, columns = read(id_column)
    chosen = chosen_ids({column: values.copy for column, values in columns.items()}, id_column)
    column, ids = chosen or ("", paths)
    samples = [
        Sample(f"row {row}", f"row {row}", f"expected an id; found {image_id.found}")
        if isinstance(image_id, NoId)
        else _sample(image_id, path, image_root.root)
        for row, (image_id, path) in enumerate(zip(ids, paths, strict=True), 1)
    ]
    return FoundImages(image_root.root, samples, f"the column {column}" if chosen else "paths")


def _llava_images(file: BinaryIO, shown: str, root: str, left_out: Counter[str]) -> Iterator[Sample]:
    """Yield the images of a LLaVA file one at a time.

    A record that cannot be read, or that has other media, becomes a sample with a problem.
    """
    bad: list[Sample] = []
    for number, row in llava_json.records_of(file, shown):
        try:
            images = llava_json.images_of(row)
        except UserError as problem:
            record = llava_json.record_name(shown, number)
            bad.append(Sample(record, record, str(problem)))
            continue
        if not images:
            left_out["text-only entries"] += 1
        yield from (_sample(image, image, root) for image in images)
    yield from bad


def _sample(image_id: Any, path: Any, root: str) -> Sample:  # noqa: ANN401 - whatever a data file holds
    """Make the sample of one image.

    A full path or URL may begin with the root.
    """
    try:
        if image_id is None:
            raise ValueError("expected an id; found none")
        if _is_picture(path):
            raise ValueError("expected 'image' to be a path; found a picture as base64 text; decode it into a file")
        return named(image_id, llava_json.relative_path(path, root), "image")
    except ValueError as problem:
        is_text = isinstance(image_id, str) and 0 < len(image_id) <= llava_json.LONGEST_PATH and "\0" not in image_id
        shown = escaped(image_id) if is_text and not _is_picture(image_id) else llava_json.shown(image_id)
        return Sample(shown, shown, str(problem))


def _is_picture(text: Any) -> bool:  # noqa: ANN401 - whatever a data file holds
    """Tell whether a text is a picture in base64, alone or as a `data:` URL."""
    if not isinstance(text, str) or len(text) < _SHORT:
        return False
    begun = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return begun_format(base64.b64decode(begun[:24], validate=True)) is not None
    except ValueError:
        return False


def _refuse_pictures(paths: Iterable[Any], column: str, shown: str) -> None:
    if row := next((row for row, path in enumerate(paths, 1) if _is_picture(path)), None):
        raise UserError(
            f"{shown}: expected paths in the column {column!r}; found a picture as base64 text in row {row}; decode "
            "the pictures into files, or into a binary column of a Parquet file"
        )


def _text(file: Any, shown: str, suffix: str, id_column: str | None) -> _Columns:  # noqa: ANN401 - any binary file
    with _long_cells():
        rows = _rows(file, shown, suffix)
        names = next(rows)
        path = next((column for column in PATH_COLUMNS if column in names), None)
        if path is None:
            raise UserError(_no_paths(shown, escaped(", ".join(names)[:200]) or "nothing"))
        ids = candidates(names, id_column, shown)
        positions = {column: names.index(column) for column in (path, *ids)}
        table = [[row[position] if position < len(row) else None for position in positions.values()] for row in rows]
    columns = {column: [row[position] for row in table] for position, column in enumerate(positions)}
    _refuse_pictures(columns[path], path, shown)
    return columns[path], {column: text_ids(columns[column]) for column in ids}


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let the module csv read cells of up to `_LONGEST_CELL` characters in the block.

    Its limit is one for all threads, hence the lock.
    """
    with _CELLS:
        before = csv.field_size_limit(_LONGEST_CELL)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _rows(file: Any, shown: str, suffix: str) -> Iterator[list[str]]:  # noqa: ANN401
    """Yield the names of the columns, then the rows.

    Bytes that are not UTF-8 become surrogate escapes, so that they cost only their own row.
    """
    refuse_wide(file, shown)
    lines = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    if suffix == ".txt":
        yield ["path"]
        yield from ([line] for line in (line.rstrip("\r\n") for line in lines) if line.strip())
        return
    rows = csv.reader(lines, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    try:
        yield next(rows, [])
        yield from (row for row in rows if row)
    except csv.Error as error:
        raise UserError(
            f"{shown}: line {rows.line_num}: expected {suffix[1:].upper()}; {error}; put a field that holds a quote "
            'into quotes, with "" for each inside, or give the paths alone as .txt'
        ) from error


def _parquet(file: Any, shown: str, id_column: str | None) -> _Columns:  # noqa: ANN401
    """Read the paths and ids of a Parquet file, and no other columns."""
    try:
        table = pq.ParquetFile(file, page_checksum_verification=True)
        schema = table.schema_arrow
        path = _path_column(schema, shown)
        ids = id_columns(schema, id_column, shown)
        refuse_other_counts(table.metadata)
        batches = list(table.iter_batches(columns=list({path, *ids})))
        columns = {column: id_texts([batch.column(column) for batch in batches]) for column in (path, *ids)}
    except FAULTS as error:
        raise UserError(f"{shown}: expected a Parquet file; {one_line(error)}") from error
    paths = [None if isinstance(value, NoId) else value for value in columns[path]]
    _refuse_pictures(paths, path, shown)
    return paths, {column: columns[column] for column in ids}


def _path_column(schema: pa.Schema, shown: str) -> str:
    there = {column: schema.field(column).type for column in PATH_COLUMNS if schema.names.count(column) == 1}
    path = next((column for column, kind in there.items() if is_text(kind)), None)
    if path is not None:
        return path
    if there:
        column, kind = next(iter(there.items()))
        raise UserError(
            f"{shown}: expected an image's path in the column {column!r}, or its bytes ({IMAGES}); found "
            f"{str(kind)[:200]}"
        )
    found = described(schema)
    raise UserError(_no_paths(shown, found) + (f"; or of images: {IMAGES}" if "(" in found else ""))


def _no_paths(shown: str, found: str) -> str:
    return f"{shown}: expected a column called {', '.join(PATH_COLUMNS[:-1])} or {PATH_COLUMNS[-1]}; found {found}"

"""Lists of images' paths: LLaVA's JSON and JSONL, CSV, TSV, plain text, Parquet."""

import csv
import io
import posixpath
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sea_pipeline import llava_json
from sea_pipeline.errors import UserError, one_line
from sea_pipeline.samples import Sample
from sea_pipeline.sources.base import ID_COLUMNS, Found, candidates, chosen_ids, escaped, named
from sea_pipeline.sources.files import Files, reading

PATH_COLUMNS = ("path", "image", "file_name", "uri")
"""Columns that hold a path, the best first."""


def list_paths(files: Files, name: str, image_root: Files, id_column: str | None, left_out: Counter[str]) -> Found:
    """The images that a file names, by what it calls them.

    Args:
        files: where the list is.
        name: of the list.
        image_root: where its paths start. A path that leaves it costs that image.
        id_column: the column that holds the ids; None for the first that `ID_COLUMNS` names whose values all differ, or
            else the paths as they are written.
        left_out: told of records without an image.

    Raises:
        UserError: it cannot be read, or is no such list.
    """
    shown = f"{files.root}/{name}"
    suffix = posixpath.splitext(name)[1].lower()
    with reading(shown), files.open(name) as file:
        if suffix in (".json", ".jsonl"):
            if id_column is not None:
                raise UserError(f"--id-column {id_column}: goes with tables; LLaVA's ids are what `image` says")
            rows = llava_json.records_of(file, shown)
            return Found(image_root.root, list(_llava_images(rows, shown, image_root.root, left_out)))
        lines = _parquet(file, shown, id_column) if suffix == ".parquet" else _text(file, shown, suffix)
        names = next(lines)
        path_column = next((column for column in PATH_COLUMNS if column in names), None)
        if path_column is None:
            raise UserError(
                f"{shown}: expected a column called {', '.join(PATH_COLUMNS[:-1])} or {PATH_COLUMNS[-1]}; "
                f"found {escaped(', '.join(map(str, names))[:200]) or 'nothing'}"
            )
        id_columns = candidates(names, id_column, shown)
        wanted = [names.index(column) for column in (path_column, *id_columns)]
        table = [[row[place] if place < len(row) else None for place in wanted] for row in lines]
    values = {column: [row[place] for row in table] for place, column in enumerate(id_columns, 1)}
    chosen = chosen_ids({column: values[column].copy for column in values}, id_column)
    ids = chosen[1] if chosen else [row[0] for row in table]
    samples = [_sample(image_id, row[0], image_root.root) for image_id, row in zip(ids, table, strict=True)]
    return Found(image_root.root, samples, f"the column {chosen[0]}" if chosen else "paths")


def _llava_images(
    records: Iterator[tuple[int, dict[str, Any]]], shown: str, root: str, left_out: Counter[str]
) -> Iterator[Sample]:
    """The images of a LLaVA file, one at a time; a record with media that are not read is a sample that is bad."""
    for number, row in records:
        try:
            images = llava_json.images_of(row)
        except UserError as problem:
            name = llava_json.place(shown, number)
            yield Sample(name, name, str(problem))
            continue
        if not images:
            left_out["text-only entries"] += 1
        yield from (_sample(image, image, root) for image in images)


def _sample(image_id: Any, path: Any, root: str) -> Sample:  # noqa: ANN401 - whatever a data file holds
    """One image; a path or URL that is written in full may begin with the root."""
    try:
        if image_id is None:
            raise ValueError("expected an id; found none")
        return named(image_id, llava_json.relative_path(path, root), "image")
    except ValueError as problem:
        is_text = isinstance(image_id, str) and image_id and "\0" not in image_id
        shown = escaped(image_id) if is_text else repr(image_id)
        return Sample(shown, shown, str(problem))


def _text(file: Any, shown: str, suffix: str) -> Iterator[list[str]]:  # noqa: ANN401 - any binary file
    """The names of the columns, then the rows. What is not UTF-8 costs its own row: it comes as surrogate escapes."""
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


def _parquet(file: Any, shown: str, id_column: str | None) -> Iterator[list[Any]]:  # noqa: ANN401
    """The same of a Parquet file, of which only the columns are read that can matter."""
    try:
        table = pq.ParquetFile(file, page_checksum_verification=True)
        names = table.schema_arrow.names
        wanted = [name for name in names if name in {*PATH_COLUMNS, *ID_COLUMNS, id_column}]
        yield wanted if any(name in names for name in PATH_COLUMNS) and id_column in (None, *names) else names
        for batch in table.iter_batches(columns=wanted):
            yield from map(list, zip(*(column.to_pylist() for column in batch.columns), strict=True))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{shown}: expected a Parquet file; {one_line(error)}") from error

"""Programs that know nothing of this package, and whether they read an output folder's tables as pyarrow does.

    python -m tests.support.table_readers FOLDER

reads every Parquet file below FOLDER with each of them that is installed, row for row, and prints a line for each.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Rows = list[dict[str, Any]]


def by_duckdb(path: Path) -> Rows:
    import duckdb

    with duckdb.connect() as connection:
        found = connection.read_parquet(str(path))
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def by_polars(path: Path) -> Rows:
    import polars

    return polars.scan_parquet(path).collect().to_dicts()


def by_pandas(path: Path) -> Rows:
    import pandas

    return pandas.read_parquet(path, engine="pyarrow").to_dict("records")


def by_datasets(path: Path) -> Rows:
    import datasets

    with tempfile.TemporaryDirectory() as scratch:
        return list(datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=scratch))


def by_datasets_streaming(path: Path) -> Rows:
    import datasets

    return list(datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True))


def by_fastparquet(path: Path) -> Rows:
    import pandas

    return pandas.read_parquet(path, engine="fastparquet").to_dict("records")


def by_spark(path: Path) -> Rows:
    return [row.asDict() for row in _spark({}).read.parquet(str(path)).collect()]


def by_spark_row_by_row(path: Path) -> Rows:
    settings = {"spark.sql.parquet.enableVectorizedReader": "false"}
    return [row.asDict() for row in _spark(settings).read.parquet(str(path)).collect()]


def _spark(settings: Mapping[str, str]) -> Any:
    session = _spark_session()
    for name, default in {"spark.sql.parquet.enableVectorizedReader": "true"}.items():
        session.conf.set(name, settings.get(name, default))
    return session


@cache
def _spark_session() -> Any:
    from pyspark.sql import SparkSession

    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    session = builder.config("spark.driver.memory", "4g").getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    return session


TESTED: dict[str, tuple[str, Callable[[Path], Rows]]] = {
    "DuckDB": ("duckdb", by_duckdb),
    "polars": ("polars", by_polars),
    "pandas": ("pandas", by_pandas),
    "datasets": ("datasets", by_datasets),
    "datasets, streaming": ("datasets", by_datasets_streaming),
}
"""By name, the package and how it reads: those that the tests have."""
OTHERS: dict[str, tuple[str, Callable[[Path], Rows]]] = {
    "Spark": ("pyspark", by_spark),
    "Spark, not vectorised": ("pyspark", by_spark_row_by_row),
    "fastparquet": ("fastparquet", by_fastparquet),
}


def difference(path: Path, read: Callable[[Path], Rows]) -> str | None:
    """Where a reader's rows are not pyarrow's, or None."""
    expected, found = pq.read_table(path).to_pylist(), read(path)
    if len(expected) != len(found):
        return f"expected {len(expected)} rows, found {len(found)}"
    for number, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        if ours.keys() != theirs.keys():
            return f"expected the columns {', '.join(ours)}; found {', '.join(theirs)}"
        for name, value in ours.items():
            if value != (other := _plain(theirs[name], value)):
                return f"row {number}, {name}: expected {value!r:.60}, found {other!r:.60}"
    return None


def _plain(value: Any, like: Any) -> Any:
    """A reader's list, bytes or missing value as Python's own."""
    if isinstance(like, list):
        if value is None or len(value) != len(like):
            return value
        return [_plain(each, one) for each, one in zip(value, like, strict=True)]
    if isinstance(like, bytes):
        return bytes(value) if value is not None else None
    if like is None:
        return None if value is None or value != value else value
    return value


def tables(folder: Path) -> list[Path]:
    """Every Parquet file of an output folder."""
    return sorted(folder.rglob("*.parquet"))


def _lines(folder: Path) -> Iterator[str]:
    for name, (package, read) in (TESTED | OTHERS).items():
        try:
            called = f"{name} {version(package)}"
        except PackageNotFoundError:
            yield f"{name}: not installed"
            continue
        for path in tables(folder):
            try:
                said = difference(path, read) or "ok"
            except BaseException as error:  # polars panics with one of its own
                said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.160}"
            yield f"{called}: {path.relative_to(folder)}: {said}"


if __name__ == "__main__":
    for line in _lines(Path(sys.argv[1])):
        print(line, flush=True)

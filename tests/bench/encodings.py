"""Bytes of label shards in other encodings than ours, and the CPU time of reading and writing them.

python -m tests.bench.encodings FOLDER rewrites the shards of a finished folder of labels and prints a line for each.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sea_pipeline.labels.format import ROWS_PER_GROUP
from sea_pipeline.storage.parquet import open_parquet

WORDS, SCORES = "words.list.element", "scores.list.element"
SPLIT = {SCORES: "BYTE_STREAM_SPLIT"}
REPEATS = 15

HALF, SINGLE = np.float16, np.float32
ENCODINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "float16, byte-stream-split (version 1)": (HALF, {"column_encoding": SPLIT}),
    "float16, plain": (HALF, {}),
    "float16, dictionary": (HALF, {"use_dictionary": [SCORES]}),
    "float32, byte-stream-split (ours)": (SINGLE, {"column_encoding": SPLIT}),
    "float32, plain": (SINGLE, {}),
    "float32, dictionary": (SINGLE, {"use_dictionary": [SCORES]}),
    "ours, zstd 9": (SINGLE, {"column_encoding": SPLIT, "compression_level": 9}),
    "ours, word ids by dictionary": (SINGLE, {"column_encoding": SPLIT, "use_dictionary": [WORDS]}),
    "ours, word ids delta-packed": (SINGLE, {"column_encoding": SPLIT | {WORDS: "DELTA_BINARY_PACKED"}}),
    "ours, word ids byte-stream-split": (SINGLE, {"column_encoding": SPLIT | {WORDS: "BYTE_STREAM_SPLIT"}}),
}
"""By name, what scores are stored as, and options of the writer."""


def with_scores(table: pa.Table, dtype: npt.DTypeLike) -> pa.Table:
    """The same rows with scores of another precision."""
    place = table.schema.get_field_index("scores")
    values = pa.array(table["scores"].combine_chunks().flatten().to_numpy().astype(dtype))
    element = pa.field("element", values.type, nullable=False)
    scores = pa.FixedSizeListArray.from_arrays(values, type=pa.list_(element, table.schema.field(place).type.list_size))
    return table.set_column(place, pa.field("scores", scores.type, nullable=False), scores)


def write(table: pa.Table, path: Path, options: dict[str, Any]) -> None:
    given = {"compression_level": 3, "use_dictionary": False} | options
    with pq.ParquetWriter(
        path, table.schema, compression="zstd", write_statistics=["image_id"], write_page_checksum=True, **given
    ) as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)


def read(path: Path) -> None:
    file = open_parquet(path)
    for group in range(file.num_row_groups):
        file.read_row_group(group, use_threads=False)


def of_cpu(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main(folder: Path) -> None:
    table = pa.concat_tables(with_scores(pq.read_table(path), HALF) for path in sorted((folder / "labels").iterdir()))
    given = {name: with_scores(table, dtype) for name, (dtype, _) in ENCODINGS.items()}
    print(f"{len(table)} images of {table.schema.field('words').type.list_size} labels")
    with tempfile.TemporaryDirectory() as scratch:
        paths = {name: Path(scratch) / f"{number}.parquet" for number, name in enumerate(ENCODINGS)}
        spent: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ENCODINGS}
        for _ in range(REPEATS):
            for name, (_, options) in ENCODINGS.items():
                writing, reading = spent[name]
                writing.append(of_cpu(lambda name=name, options=options: write(given[name], paths[name], options)))
                reading.append(of_cpu(lambda name=name: read(paths[name])))
        sizes = {name: path.stat().st_size for name, path in paths.items()}
    first = next(iter(sizes.values()))
    for name, size in sizes.items():
        writing, reading = (1e6 * median(times) / len(table) for times in spent[name])
        print(
            f"{name:40} {size / len(table):8,.0f} B an image {size / first - 1:+7.1%}, "
            f"write {writing:5.0f} µs, read {reading:4.0f} µs"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

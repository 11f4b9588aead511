"""Define, write and read label shards.

A shard has one row for each good image, in plan order. Bad images have a row in the quarantine table instead. Word ids
are positions in `words.txt`, which is next to the folder of shards. Columns:

    image_id      string                  what training data calls the image; `NAME#cropN` is its N-th labelled crop
    uri           string                  where it was, relative to the image root
    image_sha256  binary[32]              of the file's bytes
    height, width int32                   of the upright image, pixels
    crop_box      float32[4]              x0, y0, x1, y1: the part that the grid covers, 0..1 of the upright image,
                                          beyond 0 and 1 if it was padded with bars
    words         uint16[rows·columns·n]  word ids, patch by patch (row-major), best first; 65,535: no label
    scores        float32[same]           similarity s >= 0 of each (SEA Eq. 6), 0 if there is no label; rounded to
                                          float16, so that half of its bytes compress to little

In folders of schema version 1 scores are float16 with the same values, and stay so when such a folder is continued.
Other programs read float32 with byte-stream-split, but seldom float16, see docs/label-format.md.

The folder also has `words.txt`, the list with one word per line, and `words.parquet` with the columns word and
mean_similarity (float32), which is the mean of s over all patches of the run, labels or not (SEA Fig. 6b).

The footer holds, under `sea_pipeline`, a JSON object. It has the fingerprint and its fields, among them `grid` (rows
and columns) and `top_n` (n), the number of patches and the sum of their embeddings (base64 of little-endian float64).
The means follow from these sums. `sha256` is the hash of the other keys; shards of older versions lack it.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sea_pipeline.inputs.crops import CropBox
from sea_pipeline.output.records import SCHEMA_VERSION
from sea_pipeline.storage.parquet import RowGroupWriter, open_parquet, parquet_writer
from sea_pipeline.storage.paths import Place

KIND = "labels"
WORDS = "words.txt"
MEANS = "words.parquet"
NO_WORD = 65_535
ROWS_PER_GROUP = 32
"""Small enough to read one image in milliseconds, large enough for zstd to compress well."""


def label_schema(patches: int, top_n: int, schema_version: int = SCHEMA_VERSION) -> pa.Schema:
    """Return the columns of a label shard."""
    score = pa.float16() if schema_version == 1 else pa.float32()
    size = patches * top_n
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("image_sha256", pa.binary(32), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("crop_box", _fixed_list(pa.float32(), 4), nullable=False),
            pa.field("words", _fixed_list(pa.uint16(), size), nullable=False),
            pa.field("scores", _fixed_list(score, size), nullable=False),
        ]
    )


class LabelRow(NamedTuple):
    """The stored values of one image."""

    image_id: str
    uri: str
    image_sha256: bytes
    height: int
    width: int
    crop_box: CropBox
    word_ids: npt.NDArray[np.integer[Any]]
    """(patches, n), -1 if there is no label; or as `to_stored` gives them."""
    scores: npt.NDArray[np.floating[Any]]
    """(patches, n), 0 if there is no label."""


class ShardWriter(RowGroupWriter[LabelRow]):
    """Writes the rows of one shard of labels, in the schema version of their folder."""

    def __init__(self, path: Path, patches: int, top_n: int, schema_version: int = SCHEMA_VERSION) -> None:
        scores = {"scores.list.element": "BYTE_STREAM_SPLIT"}  # 11 to 14 % smaller than plain, on 200 photos
        super().__init__(path, label_schema(patches, top_n, schema_version), ROWS_PER_GROUP, scores)

    def arrays(self, rows: list[LabelRow]) -> list[pa.Array]:
        """Convert rows to the columns of `label_schema`."""
        words, scores = to_stored(np.stack([row.word_ids for row in rows]), np.stack([row.scores for row in rows]))
        lists: dict[str, npt.NDArray[Any]] = {
            "crop_box": np.array([row.crop_box for row in rows], np.float32),
            "words": words,
            "scores": scores,
        }
        return [
            pa.FixedSizeListArray.from_arrays(_values(lists[field.name], field.type.value_type), type=field.type)
            if field.name in lists
            else pa.array([getattr(row, field.name) for row in rows], field.type)
            for field in self.schema
        ]


def label_rows(table: pa.Table, top_n: int) -> Iterator[LabelRow]:
    """Yield the rows of a table as they are stored, which is what `ShardWriter` makes columns of."""
    boxes, words, scores = (
        table[name].combine_chunks().flatten().to_numpy() for name in ("crop_box", "words", "scores")
    )
    shape = len(table), table.schema.field("words").type.list_size // top_n, top_n
    plain = (table[name].to_pylist() for name in ("image_id", "uri", "image_sha256", "height", "width"))
    arrays = map(tuple, boxes.reshape(-1, 4).tolist()), words.reshape(shape), scores.reshape(shape)
    return map(LabelRow._make, zip(*plain, *arrays, strict=True))


def label_arrays(table: pa.Table, top_n: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return the word ids and scores of a table of rows.

    They are int32 and float32 (rows, patches, n), with -1 and 0 for no label.
    """
    words, scores = (table[name].combine_chunks().flatten().to_numpy() for name in ("words", "scores"))
    return from_stored(words, scores, (len(table), -1, top_n))


def to_stored(
    word_ids: npt.NDArray[np.integer[Any]], scores: npt.NDArray[np.floating[Any]]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float16]]:
    """Convert word ids (-1 for no label) and scores to the stored precision.

    Stored values stay as they are.
    """
    return np.where(word_ids < 0, NO_WORD, word_ids).astype(np.uint16), scores.astype(np.float16)


def from_stored(
    words: npt.NDArray[np.uint16], scores: npt.NDArray[np.floating[Any]], shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Convert stored word ids and scores to int32 and float32, with -1 and 0 for no label.

    `shape` is the shape of both results.
    """
    word_ids = words.astype(np.int32).reshape(shape)
    word_ids[word_ids == NO_WORD] = -1
    return word_ids, scores.astype(np.float32).reshape(shape)


def read_words(root: Place) -> tuple[str, ...]:
    """Read the word list of a folder of labels."""
    return tuple((root / WORDS).read_text("utf-8").split("\n")[:-1])


def write_mean_similarity(path: Path, words: tuple[str, ...], means: npt.NDArray[np.float32]) -> None:
    """Write `words.parquet`, which has every word with its mean of s over all patches."""
    table = pa.table({"word": words, "mean_similarity": means})
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)


def read_mean_similarity(root: Place) -> npt.NDArray[np.float32]:
    """Read the mean of s over all patches, (words,) in the order of the list."""
    table = open_parquet(root / MEANS).read()
    means: npt.NDArray[np.float32] = table["mean_similarity"].to_numpy()
    return means


def packed(vector: npt.NDArray[np.float64]) -> str:
    """Encode float64 numbers as base64 of their little-endian bytes.

    This is half the size of JSON's digits.
    """
    return base64.b64encode(vector.astype("<f8").tobytes()).decode()


def unpacked(text: str) -> npt.NDArray[np.float64]:
    """Decode what `packed` has encoded."""
    return np.frombuffer(base64.b64decode(text), "<f8").astype(np.float64)


def _values(array: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(array.ravel().astype(kind.to_pandas_dtype(), copy=False))


def _fixed_list(kind: pa.DataType, size: int) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False), size)

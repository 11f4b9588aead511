"""The plan: every image of an input in its order, cut into shards; written once, before the work starts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sea_pipeline.samples import Sample
from sea_pipeline.storage import canonical_json

_SCHEMA = pa.schema([(name, pa.string()) for name in Sample._fields])


def plan_sha256(samples: Sequence[Sample]) -> str:
    """The hash of the ids in their order. Where the files are does not count: images may move between runs."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(canonical_json([sample.image_id, sample.problem]) + b"\n")
    return digest.hexdigest()


def write_plan(path: Path, samples: Sequence[Sample], shard_size: int) -> None:
    """One row group per shard."""
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, len(samples), shard_size):
            columns = [list(column) for column in zip(*samples[start : start + shard_size], strict=True)]
            writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=shard_size)


def read_plan(path: Path, shard: int) -> list[Sample]:
    """The planned images of one shard."""
    rows = pq.ParquetFile(path, page_checksum_verification=True).read_row_group(shard)
    return [Sample(*row) for row in zip(*(column.to_pylist() for column in rows.columns), strict=True)]

"""A third command that works shard by shard, added as CONTRIBUTING says: it counts the pixels of each image."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sea_pipeline.core.progress import Advance
from sea_pipeline.core.settings import Settings
from sea_pipeline.execution.cluster_settings import WorkerSettings
from sea_pipeline.execution.sharded_job import ShardedJob
from sea_pipeline.execution.stage import ShardResult, Stage
from sea_pipeline.inputs.pixels import DECODE_VERSION, BadImageError, decode_image
from sea_pipeline.inputs.samples import BadSample, Listing, Sample
from sea_pipeline.inputs.sources import Source, list_samples
from sea_pipeline.output.ledger import Ledger

SCHEMA = pa.schema({"image_id": pa.string(), "uri": pa.string(), "image_sha256": pa.binary(32), "count": pa.int64()})


class CountSettings(Settings):
    images: str
    channels: int = 1
    out: str | Path | None = None
    extend: bool = False
    limit: int | None = None
    shard_size: int = 4
    device: str = "cpu"
    max_bad: float = 0.5
    retry_bad: bool = False
    crew: WorkerSettings = WorkerSettings()


class CountJob(ShardedJob[CountSettings], Stage):
    """The job and its stage."""

    name, doing, kind = "count", "counting", "counts"

    def listing(self) -> Listing:
        return list_samples(self.settings.images, None, self.settings.limit)

    def fields(self) -> dict[str, Any]:
        return {"count_version": 1, "decode_version": DECODE_VERSION, "channels": self.settings.channels}

    def make_stage(self, ledger: Ledger) -> Stage:
        return self

    def describe(self) -> dict[str, str]:
        return {"device": self.device}

    def process(
        self, samples: list[Sample], source: Source, target: Path, footer: dict[str, Any], advance: Advance
    ) -> ShardResult:
        begun, bad, rows = time.perf_counter(), [], []
        for sample in samples:
            try:
                image, sha256 = decode_image(source.read(sample.uri))
                count = image.width * image.height * self.settings.channels
                rows.append((sample.image_id, sample.uri, sha256, count))
            except BadImageError as error:
                bad.append(BadSample(sample, error.stage, error.error, error.message, error.sha256))
            advance(1)
        pq.write_table(
            pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA), target
        )
        return ShardResult(len(rows), bad, {"count": time.perf_counter() - begun}, rows[0][2].hex() if rows else None)

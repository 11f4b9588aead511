"""A third command that works shard by shard, added as CONTRIBUTING says: it counts the pixels of each image."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from sea_pipeline.core.progress import Advance
from sea_pipeline.core.settings import Settings
from sea_pipeline.execution.cluster_settings import WorkerSettings
from sea_pipeline.execution.sharded_job import ShardedJob
from sea_pipeline.execution.stage import ShardResult, Stage
from sea_pipeline.inputs.pixels import DECODE_VERSION, BadImageError, decode_image
from sea_pipeline.inputs.samples import BadSample, Listing, Sample
from sea_pipeline.inputs.sources import Source, list_samples
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.parquet import RowGroupWriter

SCHEMA = pa.schema({"image_id": pa.string(), "uri": pa.string(), "image_sha256": pa.binary(32), "count": pa.int64()})


class CountWriter(RowGroupWriter[tuple[Any, ...]]):
    def arrays(self, rows: list[tuple[Any, ...]]) -> list[pa.Array]:
        return [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]


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
        begun, bad, hashes = time.perf_counter(), [], []
        with CountWriter(target, SCHEMA, rows_per_group=64) as writer:
            for sample in samples:
                try:
                    image, sha256 = decode_image(source.read(sample.uri))
                except BadImageError as error:
                    bad.append(BadSample(sample, error.stage, error.error, error.message, error.sha256))
                else:
                    count = image.width * image.height * self.settings.channels
                    writer.add((sample.image_id, sample.uri, sha256, count))
                    hashes.append(sha256.hex())
                advance(1)
            writer.set_footer(footer)
        return ShardResult(len(hashes), bad, {"count": time.perf_counter() - begun}, hashes[0] if hashes else None)

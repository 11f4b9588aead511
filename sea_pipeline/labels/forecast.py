"""Run `sea-pipeline plan`, which labels a few images here and forecasts what many would take."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Advance, Reporter, process_peak_bytes, say_if_slow
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.execution.stage import ShardResult
from sea_pipeline.inputs.samples import Listing, Sample
from sea_pipeline.inputs.sources import open_source
from sea_pipeline.labels.checks import words_of
from sea_pipeline.labels.run import encoder_of, images_of, stage_of
from sea_pipeline.labels.settings import ForecastSettings as ForecastSettings
from sea_pipeline.labels.stage import LabelStage

_ROUNDS = 4
"""The fewest batches of each thread. With fewer, the threads that end first would seem slow."""


@dataclass(frozen=True)
class Share:
    """The time and cost for a number of workers that are each like this process."""

    workers: int
    hours: float
    cost: float | None


@dataclass(frozen=True)
class Forecast:
    """The forecast for `planned` images, from `measured` ones that were labelled here."""

    planned: int
    measured: int
    bad: int
    device: str
    images_per_second: float
    seconds_per_image: dict[str, float]
    """Seconds by part of the work. Decoding is summed over its threads and runs at the same time as the rest."""
    start_seconds: float
    """Once for each worker: loading the encoder, and loading or making the words' embeddings."""
    words_seconds: float
    """The part of `start_seconds` for the words' embeddings, next to nothing if they were in the cache."""
    bytes_per_image: float
    memory_bytes: int
    """The peak memory of this process."""
    shards: int
    shares: tuple[Share, ...]

    @property
    def bytes(self) -> float:
        """Return the size of all shards together."""
        return self.bytes_per_image * self.planned

    def to_json(self) -> dict[str, Any]:
        """Return the fields and `bytes` for machines."""
        return asdict(self) | {"bytes": self.bytes}


def forecast(settings: ForecastSettings, reporter: Reporter = SILENT) -> Forecast:
    """Label some images as `label` would, in a temporary folder, and scale the figures.

    A worker is a process like this one, with as many cores to itself and the same device. Work is handed out by whole
    shards, so many workers with few shards wait for the last ones.

    Raises:
        UserError: see `words_of`, `load_encoder` and `list_samples`; or no image could be labelled.
    """
    device = resolve_device(settings.device)
    stage, start, of_words = _started(settings, device, reporter)
    with say_if_slow(reporter, "listing the images"):
        listing = images_of(settings)
    count = max(settings.measure, _ROUNDS * stage.batch_size * stage.encode_threads)
    with reporter.progress("measuring", count) as advance:
        seconds, bytes_per_image, result = _measured(stage, listing, count, advance)
    if not result.rows:
        raise UserError(
            f"{listing.origin}: none of {len(result.bad)} images could be labelled: {result.bad[0].message}"
        )
    passed = result.rows + len(result.bad)
    rate = passed / seconds
    return Forecast(
        planned=settings.planned,
        measured=passed,
        bad=len(result.bad),
        device=device,
        images_per_second=rate,
        seconds_per_image={part: spent / passed for part, spent in result.seconds.items()},
        start_seconds=start,
        words_seconds=of_words,
        bytes_per_image=bytes_per_image,
        memory_bytes=process_peak_bytes(),
        shards=-(-settings.planned // settings.shard_size),
        shares=tuple(_shares(settings, rate, start)),
    )


def busiest(images: int, shard_size: int, workers: int) -> int:
    """Count the images of the worker that gets the most, if shards are handed out in turn."""
    shards = -(-images // shard_size)
    mine = len(range(0, shards, workers))  # the shards of the first worker, which no other exceeds
    # If the last shard, which may be smaller, is among them, its missing images are subtracted.
    has_last = (shards - 1) % workers == 0
    return mine * shard_size - (shards * shard_size - images if has_last else 0)


def _started(settings: ForecastSettings, device: str, reporter: Reporter) -> tuple[LabelStage, float, float]:
    """Make the stage and measure the seconds until it is ready and those for the words' embeddings."""
    begun = time.perf_counter()
    words, encoder = words_of(settings), encoder_of(settings, device)
    encoder.load()
    asked = time.perf_counter()
    embeddings = word_embeddings(encoder, words, reporter)
    answered = time.perf_counter()
    stage = stage_of(settings, encoder, embeddings, device)
    return stage, time.perf_counter() - begun, answered - asked


def _measured(stage: LabelStage, listing: Listing, count: int, advance: Advance) -> tuple[float, float, ShardResult]:
    """Label `count` images, after others to warm up, and return the seconds, the bytes per image and the result."""
    source, chosen = open_source(listing.root), _chosen(listing.samples, count)
    few = len(listing.samples) < count
    warm = listing.samples if few else _chosen(listing.samples, stage.batch_size * stage.encode_threads)
    with tempfile.TemporaryDirectory(prefix="sea-pipeline-") as folder:
        first, target = Path(folder) / "warm.parquet", Path(folder) / "measured.parquet"
        stage.process(warm, source, first, {}, lambda _: None)
        begun = time.perf_counter()
        result = stage.process(chosen, source, target, {}, advance)
        seconds = time.perf_counter() - begun
        # With few images, rows repeat and are compressed away, so the size comes from the warm-up.
        size = first.stat().st_size / len(warm) if few else target.stat().st_size / count
        return seconds, size, result


def _chosen(samples: list[Sample], count: int) -> list[Sample]:
    """Choose `count` samples spread over the input in its order, each as often as any other."""
    return [samples[position * len(samples) // count] for position in range(count)]


def _shares(settings: ForecastSettings, rate: float, start: float) -> Iterator[Share]:
    workers = sorted({2**power for power in range(settings.workers.bit_length())} | {settings.workers})
    for count in workers:
        hours = (start + busiest(settings.planned, settings.shard_size, count) / rate) / 3600
        yield Share(count, hours, None if settings.price is None else hours * count * settings.price)

"""Targets drawn from the images' names, and a stage that writes them: for the tests of the teacher's shards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sea_pipeline.execution.local import run
from sea_pipeline.execution.stage import ShardResult
from sea_pipeline.inputs.samples import BadSample, Listing, Sample
from sea_pipeline.inputs.sources import Source
from sea_pipeline.output.begin import open_or_create
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.publish import publish_bytes
from trainer.targets.codecs import Codec, CodecName, fit_codec, save_codec
from trainer.targets.store import CODEC, KIND, TargetRow, Targets, TargetWriter

GRID, WIDTH = (2, 3), 70
PATCHES = GRID[0] * GRID[1]
COUNT, SHARD = 11, 4
BAD = 5


def image_id(number: int) -> str:
    return f"{'ab'[number % 2]}/{number:03d}.png"


def planted(name: str, patches: int = PATCHES, width: int = WIDTH) -> Targets:
    """The targets of an image, drawn from its name."""
    random = np.random.default_rng(list(name.encode()))
    attention = random.random(patches).astype(np.float32)
    return Targets(random.normal(size=(patches, width)).astype(np.float32) * 20, attention / attention.sum())


class PlantedStage:
    at_once = 1

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def process(
        self,
        samples: list[Sample],
        source: Source,
        target: Path,
        footer: dict[str, Any],
        advance: Callable[[int], None],
    ) -> ShardResult:
        good = [sample for sample in samples if sample.image_id != image_id(BAD)]
        bad = [BadSample(sample, "teach", "NotFinite", "not finite") for sample in samples if sample not in good]
        with TargetWriter(target, PATCHES, self.codec) as writer:
            for sample in good:
                writer.add(TargetRow(sample.image_id, sample.uri, b"\x07" * 32, planted(sample.image_id)))
            writer.set_footer(footer)
        advance(len(samples))
        return ShardResult(len(good), bad, {"teach": 0.0}, "07" * 32)

    def finish(self, ledger: Ledger) -> list[Path]:
        return [ledger.root / CODEC]


def codec_of(name: CodecName) -> Codec:
    return fit_codec(name, np.concatenate([planted(image_id(number)).refined for number in range(COUNT)]))


def teach(out: Path, name: CodecName = "int8") -> Path:
    samples = sorted(Sample(image_id(number), image_id(number)) for number in range(COUNT))
    fields = {"grid": list(GRID), "width": WIDTH, "codec": name}
    ledger = open_or_create(out, KIND, fields, Listing("x", "x.json", str(out.parent), samples), SHARD, {})
    codec = codec_of(name)
    publish_bytes(out / CODEC, save_codec(codec), out)
    run(ledger, PlantedStage(codec), max_bad=0.5)
    return out


def shard(folder: Path, number: int) -> Path:
    return folder / KIND / f"part-{number:05d}-of-00003.parquet"

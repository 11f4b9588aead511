"""What workers of the tests have: a stage whose shards can be told to kill, hang or fail, and the colour encoder.

A worker gets the encoder by importing this before its work, as dask's setting `distributed.worker.preload` has it do.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import dask
import pyarrow as pa
import pyarrow.parquet as pq

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Advance
from sea_pipeline.execution.sharded_job import refuse_other_fields
from sea_pipeline.execution.stage import ShardResult, Stage
from sea_pipeline.inputs.samples import BadSample, Listing, Sample
from sea_pipeline.inputs.sources import Source
from sea_pipeline.output.begin import open_or_create
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.paths import Place
from sea_pipeline.storage.publish import publish_bytes
from tests.support import programs as programs  # what is preloaded stands there

FIELDS = {"planted": 1}
FAULTS = "SEA_TEST_FAULTS"
"""The variable that names a folder of faults: a file for a shard, its words are what befalls its attempts in turn.

Shards that are to `meet` wait until each of them has begun.
"""


def plant_fault(folder: Path, shard: int, *words: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / str(shard)).write_text(" ".join(words))


def suffer(folder: Path, shard: int) -> None:
    """The fault of this attempt at a shard, if there is one."""
    file = folder / str(shard)
    words = file.read_text().split() if file.is_file() else []
    if not words:
        return
    file.write_text(" ".join(words[1:]))
    if words[0] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if words[0] == "hang":
        time.sleep(3600)
    while words[0] == "meet" and any(other.read_text() for other in folder.iterdir()):
        time.sleep(0.01)
    if words[0] == "refuse":
        raise UserError(f"shard {shard}: the disk is full")
    if words[0] == "raise":
        raise RuntimeError(f"shard {shard} fails")


@contextmanager
def forked_workers() -> Iterator[None]:
    """Has dask fork workers of clusters on this machine as `programs.py` forks programs; users' are spawned."""
    forkserver.ensure_running()  # dask would preload other modules
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield


def planted_ledger(root: Place, images: int = 23, shard_size: int = 2) -> Ledger:
    """A folder whose work is planned; the images are names alone."""
    samples = [Sample(f"{number:03d}.png", f"{number:03d}.png") for number in range(images)]
    listing = Listing("planted", "planted", "/", samples)
    return open_or_create(root, "planted", FIELDS, listing, shard_size, {})


class PlantedStage(Stage):
    """A row for each image, drawn from its name; every image whose number ends in 7 is bad."""

    def __init__(self, faults: Path, seconds: float = 0.0) -> None:
        self._faults = faults
        self._seconds = seconds

    def describe(self) -> dict[str, str]:
        return {"device": "cpu", "backend": "planted"}

    def process(
        self, samples: list[Sample], source: Source, target: Path, footer: dict[str, Any], advance: Advance
    ) -> ShardResult:
        time.sleep(self._seconds)
        suffer(self._faults, footer["shard"])
        bad = [BadSample(sample, "decode", "Planted", "ends in 7") for sample in samples if "7.png" in sample.image_id]
        good = [sample.image_id for sample in samples if "7.png" not in sample.image_id]
        pq.write_table(pa.table({"image_id": good, "value": [hash_of(name) for name in good]}), target)
        advance(len(samples))
        return ShardResult(len(good), bad, {"plant": self._seconds}, None)

    def finish(self, ledger: Ledger) -> list[Place]:
        rows = sum(commit.rows for commit in ledger.commits())
        publish_bytes(ledger.root / "sum", str(rows).encode(), ledger.root)
        return [ledger.root / "sum"]


def hash_of(name: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 1000


@dataclass(frozen=True)
class PlantedJob:
    faults: Path
    seconds: float = 0.0
    fields: dict[str, Any] = field(default_factory=lambda: FIELDS)
    loading: str = ""
    """`raise` or `kill`, as a worker loads the stage."""
    name: str = "plant"

    def stage(self, ledger: Ledger) -> PlantedStage:
        refuse_other_fields(ledger, self.fields)
        if self.loading == "raise":
            raise MemoryError("the model is too large")
        if self.loading == "kill":
            time.sleep(3)  # one that dies at once counts as one that never came
            os.kill(os.getpid(), signal.SIGKILL)
        return PlantedStage(self.faults, self.seconds)


def dask_setup(worker: object) -> None:
    """Called by dask in a worker that preloads this file: the colour encoder for every spec, and faults for `label`."""
    from sea_pipeline.labels import run as label_run
    from sea_pipeline.labels.stage import LabelStage
    from tests.support.world import ColourEncoder

    label_run.load_encoder = lambda spec, device, options: ColourEncoder()  # type: ignore[assignment]
    process = LabelStage.process

    def with_faults(
        self: LabelStage, samples: Any, source: Any, target: Path, footer: dict[str, Any], advance: Any
    ) -> ShardResult:
        time.sleep(float(os.environ.get("SEA_TEST_SECONDS", "0")))
        if FAULTS in os.environ:
            suffer(Path(os.environ[FAULTS]), footer["shard"])
        return process(self, samples, source, target, footer, advance)

    LabelStage.process = with_faults  # type: ignore[method-assign]

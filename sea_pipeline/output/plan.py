"""Write and read the plan, which lists every image of an input in its order, cut into shards.

It is written before the work starts and never changed. Images that come later are a further part with its own plan
file. Their shards follow the earlier ones.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from sea_pipeline.inputs.samples import Sample
from sea_pipeline.output.records import Commit, DatasetFile
from sea_pipeline.storage.hashing import canonical_json
from sea_pipeline.storage.parquet import Footers, open_parquet, parquet_writer
from sea_pipeline.storage.paths import Place
from sea_pipeline.storage.publish import local_copy

_SCHEMA = pa.schema([(name, pa.string()) for name in Sample._fields])


class PlanFile(NamedTuple):
    """One part of a plan, with its file and its shards."""

    path: Place
    first: int
    end: int
    """The number after its last shard, which is how many shards were planned when it was written."""
    sha256: str
    """The hash of its ids; see `plan_sha256`."""
    images: int
    shard_size: int

    def images_of(self, shard: int) -> int:
        """Count the images of a shard."""
        return min(self.shard_size, self.images - (shard - self.first) * self.shard_size)

    def differs(self, commit: Commit, shard: int, fingerprint: str, files: list[str]) -> str | None:
        """Describe the first difference between a commit and what it must say, or return None.

        Args:
            commit: the commit that was read.
            shard: the number of its shard, which belongs to this part.
            fingerprint: the folder's fingerprint.
            files: the paths below the folder that the commit must name.
        """
        pairs = {
            "shard": (shard, commit.shard),
            "fingerprint": (fingerprint, commit.fingerprint),
            "plan": (self.sha256, commit.plan),
            "files": (files, [file.path for file in commit.files]),
            "rows and bad": (self.images_of(shard), commit.rows + commit.bad),
            "reasons": (commit.bad, sum(commit.reasons.values())),
        }
        differing = ((name, *pair) for name, pair in pairs.items() if pair[0] != pair[1])
        return next((f"{name}: expected {one!s:.160}, found {other!s:.160}" for name, one, other in differing), None)


class Plan:
    """All planned images of a folder, in their order when iterated."""

    def __init__(self, root: Place, dataset: DatasetFile) -> None:
        parts = dataset.all_parts()
        ends = accumulate(part.shards for part in parts)
        self.files = [
            PlanFile(root / plan_name(number), end - part.shards, end, part.plan, part.images, dataset.shard_size)
            for number, (part, end) in enumerate(zip(parts, ends, strict=True))
        ]
        self._footers = Footers()  # of a plan it grows with the number of shards

    def file_of(self, shard: int) -> PlanFile:
        """Return the part that a shard belongs to."""
        return next(file for file in self.files if shard < file.end)

    def samples(self, shard: int) -> list[Sample]:
        """Read the planned images of one shard."""
        file = self.file_of(shard)
        return _samples(self._footers.open(file.path).read_row_group(shard - file.first))

    def __iter__(self) -> Iterator[Sample]:
        for file in self.files:
            yield from read_plan(file.path)


def plan_name(part: int) -> str:
    """Name the plan file of a part, counted from 0."""
    return f"plan-{part:05d}.parquet" if part else "plan.parquet"


def plan_sha256(samples: Iterable[Sample]) -> str:
    """Hash the ids in their order.

    The places of the images do not count, because images may move between runs.
    """
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(canonical_json([sample.image_id, sample.problem]) + b"\n")
    return digest.hexdigest()


def write_plan(path: Path, samples: Sequence[Sample], shard_size: int) -> None:
    """Write a plan file with one row group per shard."""
    with parquet_writer(path, _SCHEMA) as writer:
        for start in range(0, len(samples), shard_size):
            columns = [list(column) for column in zip(*samples[start : start + shard_size], strict=True)]
            writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=shard_size)


def read_plan(path: Place) -> Iterator[Sample]:
    """Yield all images of one plan file."""
    with local_copy(path) as copy:
        file = open_parquet(copy)
        for group in range(file.num_row_groups):
            yield from _samples(file.read_row_group(group))


def _samples(rows: pa.Table) -> list[Sample]:
    return [Sample(*row) for row in zip(*(column.to_pylist() for column in rows.columns), strict=True)]

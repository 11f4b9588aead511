"""The plan: every image of an input in its order, cut into shards; written before the work starts, then never changed.

Images that come later are a further part with a plan file of its own; their shards follow those that are there.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from sea_pipeline.inputs.samples import Sample
from sea_pipeline.output.records import Commit, Dataset
from sea_pipeline.storage.hashing import canonical_json
from sea_pipeline.storage.parquet import open_parquet, parquet_writer
from sea_pipeline.storage.paths import Place
from sea_pipeline.storage.publish import local_copy

_SCHEMA = pa.schema([(name, pa.string()) for name in Sample._fields])


class PlanFile(NamedTuple):
    """Where one part of a plan is, and which shards it holds."""

    path: Place
    first: int
    end: int
    """One behind its last shard: how many shards there were to be when it was written."""
    sha256: str
    """Of its ids; see `plan_sha256`."""
    images: int
    shard_size: int

    def images_of(self, shard: int) -> int:
        """How many images a shard has."""
        return min(self.shard_size, self.images - (shard - self.first) * self.shard_size)

    def differs(self, commit: Commit, shard: int, fingerprint: str, files: list[str]) -> str | None:
        """How a commit differs from what that of a shard of this part says, with these files below the folder."""
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
    """All planned images of a folder. Iterating gives them in their order."""

    def __init__(self, root: Place, dataset: Dataset) -> None:
        parts = dataset.all_parts()
        ends = accumulate(part.shards for part in parts)
        self.files = [
            PlanFile(root / plan_name(number), end - part.shards, end, part.plan, part.images, dataset.shard_size)
            for number, (part, end) in enumerate(zip(parts, ends, strict=True))
        ]

    def file_of(self, shard: int) -> PlanFile:
        """The part that a shard belongs to."""
        return next(file for file in self.files if shard < file.end)

    def samples(self, shard: int) -> list[Sample]:
        """The planned images of one shard."""
        file = self.file_of(shard)
        return _samples(open_parquet(file.path).read_row_group(shard - file.first))

    def __iter__(self) -> Iterator[Sample]:
        for file in self.files:
            yield from read_plan(file.path)


def plan_name(part: int) -> str:
    """The name of the plan file of a part, counted from 0."""
    return f"plan-{part:05d}.parquet" if part else "plan.parquet"


def plan_sha256(samples: Iterable[Sample]) -> str:
    """The hash of the ids in their order. Where the files are does not count: images may move between runs."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(canonical_json([sample.image_id, sample.problem]) + b"\n")
    return digest.hexdigest()


def write_plan(path: Path, samples: Sequence[Sample], shard_size: int) -> None:
    """One row group per shard."""
    with parquet_writer(path, _SCHEMA) as writer:
        for start in range(0, len(samples), shard_size):
            columns = [list(column) for column in zip(*samples[start : start + shard_size], strict=True)]
            writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=shard_size)


def read_plan(path: Place) -> Iterator[Sample]:
    """All images of one plan file."""
    with local_copy(path) as copy:
        file = open_parquet(copy)
        for group in range(file.num_row_groups):
            yield from _samples(file.read_row_group(group))


def _samples(rows: pa.Table) -> list[Sample]:
    return [Sample(*row) for row in zip(*(column.to_pylist() for column in rows.columns), strict=True)]

"""What is planned and what is done, as files: the same for every stage that works shard by shard.

    OUT/
      dataset.json              what this folder is: named fields and their fingerprint; written once, after the plan
      plan.parquet              every picture, cut into shards; written once, one row group a shard
      <kind>/part-NNNNN-of-MMMMM.parquet
      quarantine/NNNNN.parquet  the shard's bad pictures with stage and reason, where there are any
      commits/NNNNN.json        written last: the shard exists from then on
      manifest.json             written when all commits are there; readers need only this
      .tmp/                     unfinished files

A shard's commit holds the hashes of its files and the fingerprint of the settings that made them; nothing counts
without it. A second writer of the same shard writes the same rows, so the last rename wins without harm.
"""

import datetime
import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sea_pipeline.errors import UserError
from sea_pipeline.records import (
    SCHEMA_VERSION,
    Commit,
    Dataset,
    File,
    Manifest,
    check_file,
    file_record,
    fingerprint_of,
    load_record,
)
from sea_pipeline.samples import BadSample, Listing, Sample
from sea_pipeline.storage import TEMPORARY, canonical_json, file_sha256, publish, publish_bytes, sweep

_PLAN = pa.schema([("image_id", pa.string()), ("uri", pa.string()), ("problem", pa.string())])
_QUARANTINE = pa.schema(
    [
        *((name, pa.string()) for name in ("image_id", "uri", "stage", "error", "message")),
        ("image_sha256", pa.binary(32)),
    ]
)


class Ledger:
    """An output folder: its plan, its finished shards, what is missing."""

    def __init__(self, root: Path, dataset: Dataset, image_root: Path | None = None) -> None:
        self.root = root
        self.dataset = dataset
        self.image_root = image_root or Path(dataset.image_root)
        """Where the planned `uri`s start; another place than at the beginning where the pictures have moved."""

    @classmethod
    def open(cls, root: Path) -> "Ledger":
        """Opens a folder that a run has begun.

        Raises:
            UserError: it is not such a folder, or was written by a newer version.
        """
        if not (root / "dataset.json").is_file():
            raise UserError(f"{root}: expected a folder that sea-pipeline wrote; found no dataset.json in it")
        dataset = load_record(root / "dataset.json", Dataset)
        if dataset.schema_version != SCHEMA_VERSION:
            raise UserError(
                f"{root}: expected schema version {SCHEMA_VERSION}, found {dataset.schema_version}; "
                "read it with the sea-pipeline that wrote it"
            )
        return cls(root, dataset)

    @classmethod
    def begin(
        cls,
        root: Path,
        kind: str,
        fields: dict[str, Any],
        listing: Listing,
        shard_size: int,
        companions: dict[str, bytes],
    ) -> "Ledger":
        """Begins a folder, or goes on with one that was begun with the same fields and the same pictures.

        `companions` are small files that belong beside the shards, by name.

        Raises:
            UserError: the folder belongs to another run (naming the fields that differ), or to something else.
        """
        samples = listing.samples
        wanted = Dataset(
            schema_version=SCHEMA_VERSION,
            kind=kind,
            fields=fields,
            fingerprint=fingerprint_of(fields),
            plan=_plan_sha256(samples),
            images=len(samples),
            shards=-(-len(samples) // shard_size),
            shard_size=shard_size,
            source=listing.origin,
            image_root=str(listing.root),
            files=[],
        )
        if (root / "dataset.json").exists():
            ledger = cls(root, cls.open(root).dataset, listing.root)
            ledger._refuse_another_run(wanted, samples)
            ledger._refuse_other_pictures()
            sweep(root)
            return ledger
        plan = root / "plan.parquet"
        strangers = sorted({path.name for path in root.glob("*")} - {TEMPORARY, plan.name, *companions})
        if strangers:
            raise UserError(
                f"{root}: expected an empty folder or one that sea-pipeline began; found {strangers[0]!r} in it; "
                "choose another --out"
            )
        with publish(plan, root) as scratch:
            _write_plan(scratch, samples, shard_size)
        for name, content in companions.items():
            publish_bytes(root / name, content, root)
        files = [file_record(root, root / name) for name in (plan.name, *companions)]
        dataset = wanted.model_copy(update={"files": files})
        publish_bytes(root / "dataset.json", dataset.to_bytes(), root)
        return cls(root, dataset)

    def samples(self, shard: int) -> list[Sample]:
        """The planned pictures of one shard."""
        rows = pq.ParquetFile(self.root / "plan.parquet", page_checksum_verification=True).read_row_group(shard)
        return [Sample(*row) for row in zip(*(rows[name].to_pylist() for name in _PLAN.names), strict=True)]

    def part(self, shard: int) -> Path:
        """Where a shard's file is or will be."""
        return self.root / self.dataset.kind / f"part-{shard:05d}-of-{self.dataset.shards:05d}.parquet"

    def quarantine(self, shard: int) -> Path:
        """Where the table of a shard's bad pictures is or will be."""
        return self.root / "quarantine" / f"{shard:05d}.parquet"

    def commit(self, shard: int) -> Commit | None:
        """The shard's commit, if it stands: it parses, belongs to this run, and its files have their sizes."""
        path = self.root / "commits" / f"{shard:05d}.json"
        if not path.exists():
            return None
        try:
            commit = load_record(path, Commit)
            whole = all((self.root / file.path).stat().st_size == file.bytes for file in commit.files)
        except (UserError, OSError):
            return None
        same_run = (commit.fingerprint, commit.plan) == (self.dataset.fingerprint, self.dataset.plan)
        return commit if whole and same_run else None

    def commits(self) -> Iterator[Commit]:
        """The commits that stand, in plan order."""
        return (commit for shard in range(self.dataset.shards) if (commit := self.commit(shard)))

    def missing(self) -> list[int]:
        """The shards that are not finished."""
        return [shard for shard in range(self.dataset.shards) if self.commit(shard) is None]

    @property
    def finished(self) -> bool:
        """Whether there is a manifest."""
        return (self.root / "manifest.json").is_file()

    def write_quarantine(self, shard: int, bad: Sequence[BadSample]) -> None:
        """Writes the table of a shard's bad pictures."""
        rows = [(item.sample.image_id, item.sample.uri, *item[1:]) for item in bad]
        columns = [list(column) for column in zip(*rows, strict=True)]
        with publish(self.quarantine(shard), self.root) as scratch:
            pq.write_table(pa.table(columns, schema=_QUARANTINE), scratch, write_page_checksum=True)

    def record(self, shard: int, **facts: Any) -> Commit:  # noqa: ANN401 - the remaining fields of Commit
        """Writes a shard's commit; its data and its quarantine must stand already."""
        files = [self.part(shard)] + ([self.quarantine(shard)] if facts["bad"] else [])
        commit = Commit(
            shard=shard,
            fingerprint=self.dataset.fingerprint,
            plan=self.dataset.plan,
            files=[file_record(self.root, path) for path in files],
            host=platform.node(),
            versions={name: version(name) for name in ("sea-pipeline", "torch", "pyarrow", "pillow", "numpy")},
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **facts,
        )
        publish_bytes(self.root / "commits" / f"{shard:05d}.json", commit.to_bytes(), self.root)
        return commit

    def finish(self, other_files: Sequence[Path]) -> Manifest:
        """Writes the manifest from all commits; every shard must be finished."""
        commits = list(self.commits())
        assert len(commits) == self.dataset.shards, "finish() before every shard is committed"
        manifest = Manifest(
            **self.dataset.model_dump(include={"schema_version", "kind", "fields", "fingerprint", "plan"}),
            rows=sum(commit.rows for commit in commits),
            bad=sum(commit.bad for commit in commits),
            shards=[commit.files[0] for commit in commits],
            shard_rows=[commit.rows for commit in commits],
            other_files=[
                *(file_record(self.root, path) for path in other_files),
                *(file for commit in commits for file in commit.files[1:]),
            ],
        )
        publish_bytes(self.root / "manifest.json", manifest.to_bytes(), self.root)
        return manifest

    def manifest(self) -> Manifest:
        """The manifest of a finished folder.

        Raises:
            UserError: the folder is not finished, or its manifest is damaged.
        """
        if not self.finished:
            done = self.dataset.shards - len(self.missing())
            raise UserError(
                f"{self.root}: expected a finished folder; {done} of {self.dataset.shards} shards are done; "
                "finish it by running the command that began it again"
            )
        return load_record(self.root / "manifest.json", Manifest)

    def check(self, advance: Callable[[int], None] = lambda _: None) -> tuple[list[File], list[str]]:
        """Hashes every file that a record names; the files, and a line for each that differs from its record."""
        files: dict[str, File] = {}
        problems: list[str] = []
        manifest = self.manifest() if self.finished else None
        named = [*self.dataset.files, *(file for commit in self.commits() for file in commit.files)]
        for file in [*named, *manifest.shards, *manifest.other_files] if manifest else named:
            if files.setdefault(file.path, file) != file:
                problems.append(f"{self.root / file.path}: the manifest and the record before it differ")
        for file in files.values():
            problem = check_file(self.root, file)
            problems += [problem] if problem else []
            advance(file.path.startswith(f"{self.dataset.kind}/"))
        return list(files.values()), problems

    def _refuse_another_run(self, wanted: Dataset, samples: Sequence[Sample]) -> None:
        found = self.dataset
        differing = [
            f"{name}: {json.dumps(_at(found.fields, name))} there, {json.dumps(_at(wanted.fields, name))} asked for"
            for name in sorted(_names(found.fields) | _names(wanted.fields))
            if _at(found.fields, name) != _at(wanted.fields, name)
        ]
        if found.kind != wanted.kind:
            differing.insert(0, f"kind: {found.kind} there, {wanted.kind} asked for")
        if found.shard_size != wanted.shard_size:
            differing.append(f"shard_size: {found.shard_size} there, {wanted.shard_size} asked for")
        if found.plan != wanted.plan:
            differing.append(self._plan_difference(samples))
        if differing:
            raise UserError(f"{self.root}: holds another run; choose another --out. Differing: {'; '.join(differing)}")

    def _refuse_other_pictures(self) -> None:
        """Compares the first picture of a few finished shards: names alone do not tell two folders apart."""
        for commit in islice((commit for commit in self.commits() if commit.rows), 8):
            first = pq.ParquetFile(self.part(commit.shard)).read_row_group(0, columns=["uri"])["uri"][0].as_py()
            path = self.image_root / first
            if path.is_file() and file_sha256(path) != commit.first_image_sha256:
                raise UserError(
                    f"{self.root}: holds labels of another picture under the name {first!r} than {path} has now; "
                    "choose another --out"
                )

    def _plan_difference(self, samples: Sequence[Sample]) -> str:
        there = {sample.image_id for shard in range(self.dataset.shards) for sample in self.samples(shard)}
        asked = {sample.image_id for sample in samples}
        parts = [
            f"{len(ids):,} {what} (such as {min(ids)!r})"
            for ids, what in ((asked - there, "images are new"), (there - asked, "images are gone"))
            if ids
        ]
        return "images: " + (", ".join(parts) or "the problems found in their names")


def _plan_sha256(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(canonical_json([sample.image_id, sample.problem]) + b"\n")
    return digest.hexdigest()


def _write_plan(path: Path, samples: Sequence[Sample], shard_size: int) -> None:
    with pq.ParquetWriter(path, _PLAN, compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, len(samples), shard_size):
            columns = zip(*samples[start : start + shard_size], strict=True)
            writer.write_table(pa.table([list(column) for column in columns], schema=_PLAN), row_group_size=shard_size)


def _names(fields: dict[str, Any], prefix: str = "") -> set[str]:
    """The dotted names of all leaves of nested fields."""
    names: set[str] = set()
    for key, value in fields.items():
        names |= _names(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return names


def _at(fields: Any, name: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    for key in name.split("."):
        fields = fields.get(key) if isinstance(fields, dict) else None
    return fields

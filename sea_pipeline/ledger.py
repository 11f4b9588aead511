"""What is planned and what is done, as files: the same for every stage that works shard by shard.

    OUT/
      dataset.json              what this folder is: named fields and their fingerprint; written once, after the plan
      plan.parquet              every image, cut into shards; written once, one row group a shard
      <kind>/part-NNNNN-of-MMMMM.parquet
      quarantine/NNNNN.parquet  the shard's bad images with stage and reason, where there are any
      commits/NNNNN.json        written last: the shard exists from then on
      manifest.json             written when all commits are there; readers need only this
      .tmp/                     unfinished files

A shard's commit holds the hashes of its files and the fingerprint of the settings that made them; nothing counts
without it. A second writer of the same shard writes the same rows, so the last rename wins without harm.
"""

import datetime
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sea_pipeline.errors import UserError
from sea_pipeline.plan import read_plan
from sea_pipeline.quarantine import read_quarantine, write_quarantine
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
from sea_pipeline.samples import BadSample, Sample
from sea_pipeline.storage import publish, publish_bytes

QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Done:
    """How far a folder is."""

    shards: int
    images: int
    """Images with a row."""
    bad: int
    reasons: Counter[str]
    """Bad images by stage and error."""
    bytes: int
    """Of the shards and quarantine tables."""
    last: str | None
    """When the latest shard was finished, ISO 8601."""


class Ledger:
    """An output folder: its plan, its finished shards, what is missing."""

    def __init__(self, root: Path, dataset: Dataset, image_root: str | None = None) -> None:
        self.root = root
        self.dataset = dataset
        self.image_root = image_root or dataset.image_root
        """Where the planned `uri`s start, for `open_source`; elsewhere than at the beginning if images have moved."""

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
        if fingerprint_of(dataset.fields) != dataset.fingerprint:
            raise UserError(f"{root / 'dataset.json'}: damaged: its fingerprint is not that of its fields")
        return cls(root, dataset)

    def samples(self, shard: int) -> list[Sample]:
        """The planned images of one shard."""
        return read_plan(self.root / "plan.parquet", shard)

    def shard_path(self, shard: int) -> Path:
        """Where a shard's file is or will be."""
        return self.root / self.dataset.kind / f"part-{shard:05d}-of-{self.dataset.shards:05d}.parquet"

    def quarantine_path(self, shard: int) -> Path:
        """Where the table of a shard's bad images is or will be."""
        return self.root / QUARANTINE / f"{shard:05d}.parquet"

    def _commit_path(self, shard: int) -> Path:
        return self.root / "commits" / f"{shard:05d}.json"

    def commit(self, shard: int) -> Commit | None:
        """The shard's commit, if it stands: it parses, belongs to this run, and its files have their sizes."""
        path = self._commit_path(shard)
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

    def done(self) -> Done:
        """How far this folder is, from its commits."""
        commits = list(self.commits())
        return Done(
            shards=len(commits),
            images=sum(commit.rows for commit in commits),
            bad=sum(commit.bad for commit in commits),
            reasons=sum((Counter(commit.reasons) for commit in commits), Counter()),
            bytes=sum(file.bytes for commit in commits for file in commit.files),
            last=max((commit.finished for commit in commits), default=None),
        )

    def missing(self) -> list[int]:
        """The shards that are not finished."""
        return [shard for shard in range(self.dataset.shards) if self.commit(shard) is None]

    @property
    def finished(self) -> bool:
        """Whether there is a manifest."""
        return (self.root / "manifest.json").is_file()

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do: finished, and every shard still stands."""
        return self.finished and not self.missing()

    def write_quarantine(self, shard: int, bad: Sequence[BadSample]) -> None:
        """Writes the table of a shard's bad images; without any there is none."""
        path = self.quarantine_path(shard)
        if not bad:
            path.unlink(missing_ok=True)  # of an earlier attempt that was taken back
            return
        with publish(path, self.root) as scratch:
            write_quarantine(scratch, bad)

    def quarantined(self) -> Iterator[dict[str, Any]]:
        """The bad images of the finished shards: image_id, uri, stage, error, message, image_sha256."""
        for commit in self.commits():
            if commit.bad:
                yield from read_quarantine(self.quarantine_path(commit.shard))

    def refuse_damage(self) -> None:
        """Raises a UserError where the plan or another file from the beginning is not what was written."""
        for file in self.dataset.files:
            if problem := check_file(self.root, file):
                raise UserError(f"{problem}; restore the file, or choose another --out")

    def take_back_bad_shards(self, max_bad: float) -> None:
        """Takes back finished shards with more than this share of bad images: their input may have been mended."""
        for commit in self.commits():
            if commit.bad > max_bad * (commit.bad + commit.rows):
                (self.root / "manifest.json").unlink(missing_ok=True)
                self._commit_path(commit.shard).unlink(missing_ok=True)

    def record(self, shard: int, **facts: Any) -> Commit:  # noqa: ANN401 - the remaining fields of Commit
        """Writes a shard's commit; its data and its quarantine must stand already."""
        files = [self.shard_path(shard)] + ([self.quarantine_path(shard)] if facts["bad"] else [])
        commit = Commit(
            shard=shard,
            fingerprint=self.dataset.fingerprint,
            plan=self.dataset.plan,
            files=[file_record(self.root, path) for path in files],
            host=platform.node(),
            versions={name: _version(name) for name in ("sea-pipeline", "torch", "pyarrow", "pillow", "numpy")},
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **facts,
        )
        publish_bytes(self._commit_path(shard), commit.to_bytes(), self.root)
        return commit

    def finish(self, other_files: Sequence[Path]) -> Manifest:
        """Writes the manifest from all commits; every shard must be finished.

        Raises:
            UserError: the plan or the word list is not what the shards were made with, or another process, running
                beside this one, has taken shards back.
        """
        self.refuse_damage()
        commits = list(self.commits())
        if len(commits) != self.dataset.shards:
            raise UserError(f"{self.root}: another run takes shards back at the same time; run the command again")
        manifest = Manifest(
            **self.dataset.model_dump(include={"schema_version", "kind", "fields", "fingerprint", "plan"}),
            rows=sum(commit.rows for commit in commits),
            bad=sum(commit.bad for commit in commits),
            shards=[commit.files[0] for commit in commits],
            shard_rows=[commit.rows for commit in commits],
            other_files=[
                *self.dataset.files,
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
        manifest = load_record(self.root / "manifest.json", Manifest)
        if manifest.fields != self.dataset.fields or manifest.plan != self.dataset.plan:
            raise UserError(f"{self.root}: damaged: manifest.json and dataset.json are of two different runs")
        if sum(manifest.shard_rows) != manifest.rows or len(manifest.shard_rows) != len(manifest.shards):
            raise UserError(f"{self.root / 'manifest.json'}: damaged: its numbers of rows do not add up")
        return manifest

    def check(self, advance: Callable[[int], None] = lambda _: None) -> tuple[list[File], list[str]]:
        """Hashes every file that a record names; the files, and a line for each that differs from its record."""
        files: dict[str, File] = {}
        problems: list[str] = []
        named = list(self.dataset.files)
        for path in sorted((self.root / "commits").glob("*.json")):
            try:
                named += load_record(path, Commit).files
            except UserError as error:
                problems.append(str(error))
        if self.finished:
            manifest = self.manifest()
            named += [*manifest.shards, *manifest.other_files]
        for file in named:
            if files.setdefault(file.path, file) != file:
                problems.append(f"{self.root / file.path}: two records of it differ")
        for file in files.values():
            problem = check_file(self.root, file)
            problems += [problem] if problem else []
            advance(file.path.startswith(f"{self.dataset.kind}/"))
        return list(files.values()), problems


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder that is not installed
        return "unknown"

"""What is planned and what is done, as files: the same for every stage that works shard by shard.

    OUT/
      dataset.json              what this folder is: named fields and their fingerprint; written last of what begins it
      plan.parquet              every image, cut into shards; one row group a shard
      plan-NNNNN.parquet        the images of the NNNNNth --extend; then dataset.json is replaced, again last
      <kind>/part-NNNNN-of-MMMMM.parquet    MMMMM: how many shards there were to be when this one was planned
      quarantine/NNNNN.parquet  the shard's bad images with stage and reason, where there are any
      commits/NNNNN.json        written last: the shard exists from then on
      manifest.json             written when all commits are there
      .tmp/                     unfinished files; of stores elsewhere, in the cache folder of this machine

A shard's commit holds the hashes of its files and the fingerprint of the settings that made them; nothing counts
without it. A second writer of the same shard writes the same rows, so the last rename wins without harm.
"""

import datetime
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sea_pipeline.errors import UserError
from sea_pipeline.plan import Plan
from sea_pipeline.quarantine import read_quarantine, write_quarantine
from sea_pipeline.records import (
    SCHEMA_VERSION,
    Commit,
    Dataset,
    Manifest,
    check_file,
    file_record,
    fingerprint_of,
    load_record,
)
from sea_pipeline.samples import BadSample, Sample
from sea_pipeline.storage import Place, publish, publish_bytes, spread, sweep
from sea_pipeline.storage.patience import StoreError

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

    def __init__(self, root: Place, dataset: Dataset, image_root: str | None = None) -> None:
        self.root = root
        self.dataset = dataset
        self.plan = Plan(root, dataset)
        self.image_root = image_root or dataset.image_root
        """Where the planned `uri`s start, for `open_source`; elsewhere than at the beginning if images have moved."""
        self.fields = dataset.latest_fields()
        """As this run has them: an input may have grown since without bringing an image."""

    @classmethod
    def open(cls, root: Place) -> "Ledger":
        """Opens a folder that a run has begun.

        Raises:
            UserError: it is not such a folder, or was written by a newer version.
        """
        if not (root / "dataset.json").is_file():
            raise UserError(
                f"{root}: expected a folder that sea-pipeline wrote; found {_other_than_ours(root)}; "
                "give the output folder of label or teacher, such as one below runs/labels"
            )
        dataset = load_record(root / "dataset.json", Dataset)
        if dataset.schema_version != SCHEMA_VERSION:
            raise UserError(
                f"{root}: expected schema version {SCHEMA_VERSION}, found {dataset.schema_version}; "
                "read it with the sea-pipeline that wrote it"
            )
        if fingerprint_of(dataset.fields) != dataset.fingerprint:
            raise UserError(f"{root / 'dataset.json'}: damaged: its fingerprint is not that of its fields")
        parts = dataset.all_parts()
        if (sum(part.shards for part in parts), sum(part.images for part in parts)) != (dataset.shards, dataset.images):
            raise UserError(f"{root / 'dataset.json'}: damaged: its parts do not add up")
        return cls(root, dataset)

    def samples(self, shard: int) -> list[Sample]:
        """The planned images of one shard."""
        return self.plan.samples(shard)

    def shard_path(self, shard: int) -> Place:
        """Where a shard's file is or will be."""
        name = f"part-{shard:05d}-of-{self.plan.file_of(shard).end:05d}.parquet"
        return self.root / self.dataset.kind / name

    def quarantine_path(self, shard: int) -> Place:
        """Where the table of a shard's bad images is or will be."""
        return self.root / QUARANTINE / f"{shard:05d}.parquet"

    def commit_path(self, shard: int) -> Place:
        """Where a shard's commit is or will be."""
        return self.root / "commits" / f"{shard:05d}.json"

    def commit(self, shard: int) -> Commit | None:
        """The shard's commit, if it stands: it parses, belongs to this run, and its files have their sizes."""
        try:
            commit = load_record(self.commit_path(shard), Commit)
            whole = all((self.root / file.path).stat().st_size == file.bytes for file in commit.files)
        except StoreError:
            raise
        except (UserError, OSError):
            return None
        same_run = (commit.fingerprint, commit.plan) == (self.dataset.fingerprint, self.plan.file_of(shard).sha256)
        return commit if whole and same_run else None

    def commits(self) -> Iterator[Commit]:
        """The commits that stand, in plan order."""
        return filter(None, spread(self.root, self.commit, range(self.dataset.shards)))

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
        done = {commit.shard for commit in self.commits()}
        return [shard for shard in range(self.dataset.shards) if shard not in done]

    @property
    def finished(self) -> bool:
        """Whether there is a manifest of all that is planned."""
        manifest = self._manifest()
        return manifest is not None and not self._is_extended_since(manifest)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do: finished, and every shard still stands."""
        return self.finished and not self.missing()

    @property
    def command(self) -> str:
        """What goes on with an unfinished folder, for people."""
        manifest = self._manifest()
        extended = manifest is not None and self._is_extended_since(manifest)
        return f"the command that {'extended' if extended else 'began'} it"

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

    def take_back_bad_shards(self, max_bad: float, shards: range | None = None) -> None:
        """Takes back finished shards with more than this share of bad images: their input may have been mended.

        What a manifest names has been accepted: that goes only where no bad image is allowed.
        """
        manifest = self._manifest() if max_bad else None
        accepted = len(manifest.shards) if manifest else 0
        for commit in self.commits():
            wanted = commit.shard >= accepted and (shards is None or commit.shard in shards)
            if wanted and commit.bad > max_bad * (commit.bad + commit.rows):
                (self.root / "manifest.json").unlink(missing_ok=True)
                self.commit_path(commit.shard).unlink(missing_ok=True)

    def record(self, shard: int, **facts: Any) -> Commit:  # noqa: ANN401 - the remaining fields of Commit
        """Writes a shard's commit; its data and its quarantine must stand. Or another run's, if it stands."""
        files = [self.shard_path(shard)] + ([self.quarantine_path(shard)] if facts["bad"] else [])
        commit = Commit(
            shard=shard,
            fingerprint=self.dataset.fingerprint,
            plan=self.plan.file_of(shard).sha256,
            files=[file_record(self.root, path) for path in files],
            host=platform.node(),
            versions={name: _version(name) for name in ("sea-pipeline", "torch", "pyarrow", "pillow", "numpy")},
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            **facts,
        )
        path, data = self.commit_path(shard), commit.to_bytes()
        try:
            publish_bytes(path, data, self.root, exclusive=True)
        except FileExistsError:  # another run's, without a lock between us, or one that does not stand any more
            faster = self.commit(shard)
            if faster and not any(check_file(self.root, file) for file in faster.files):  # not if ours came behind it
                return faster
            publish_bytes(path, data, self.root)
        return commit

    def finish(self, other_files: Sequence[Place]) -> Manifest:
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
        sweep(self.root)  # of runs beside this one that were killed
        return manifest

    def manifest(self) -> Manifest:
        """The manifest of a finished folder.

        Raises:
            UserError: the folder is not finished, or its manifest is damaged.
        """
        manifest = self._manifest()
        if manifest is None or self._is_extended_since(manifest):
            done = self.dataset.shards - len(self.missing())
            raise UserError(
                f"{self.root}: expected a finished folder; {done} of {self.dataset.shards} shards are done; "
                f"finish it by running {self.command} again"
            )
        if manifest.fields != self.dataset.fields or manifest.plan != self.dataset.plan:
            raise UserError(f"{self.root}: damaged: manifest.json and dataset.json are of two different runs")
        if sum(manifest.shard_rows) != manifest.rows or len(manifest.shard_rows) != len(manifest.shards):
            raise UserError(f"{self.root / 'manifest.json'}: damaged: its numbers of rows do not add up")
        return manifest

    def _manifest(self) -> Manifest | None:
        path = self.root / "manifest.json"
        return load_record(path, Manifest) if path.is_file() else None

    def _is_extended_since(self, manifest: Manifest) -> bool:
        return bool(self.dataset.parts) and len(manifest.shards) < self.dataset.shards


def _other_than_ours(root: Place) -> str:
    if not root.is_dir():
        return "a file" if root.exists() else "no such folder"
    run = (root / "run.json").is_file()
    return "a training run, which sea-pipeline report shows" if run else "no dataset.json in it"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder that is not installed
        return "unknown"

"""Read and write the files that say what is planned and what is done, for every stage that works shard by shard.

    OUT/
      dataset.json              what this folder is: named fields and their fingerprint; the last file of the beginning
      plan.parquet              every image, cut into shards; one row group a shard
      plan-NNNNN.parquet        the images of the NNNNNth --extend; then dataset.json is replaced, again last
      <kind>/part-NNNNN-of-MMMMM.parquet    MMMMM: how many shards there were to be when this one was planned
      quarantine/NNNNN.parquet  the shard's bad images with stage and reason, if there are any
      commits/NNNNN.json        written last: the shard exists from then on
      manifest.json             written when all commits are there
      .tmp/                     unfinished files; for stores elsewhere they are in this machine's cache folder

A shard's commit holds the hashes of its files and the fingerprint of the settings that made them; nothing counts
without it. A second writer of the same shard writes the same rows, so the last rename wins without harm.
"""

import datetime
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import installed_version
from sea_pipeline.inputs.samples import BadSample, Sample, Version
from sea_pipeline.output.folder import (
    COMMITS,
    DATASET,
    MANIFEST,
    QUARANTINE,
    FolderProgress,
    advised,
    lost_beginning,
    refuse_others,
)
from sea_pipeline.output.plan import Plan
from sea_pipeline.output.quarantine import read_quarantine, write_quarantine
from sea_pipeline.output.records import (
    Commit,
    DatasetFile,
    File,
    Manifest,
    OtherVersionError,
    check_file,
    check_size,
    file_record,
    find_record,
    load_record,
)
from sea_pipeline.storage.paths import Place, below, map_over_store
from sea_pipeline.storage.publish import publish, publish_bytes, sweep
from sea_pipeline.storage.retry import StoreError, refuse_unreadable

_COMMANDS = {"labels": ("label", " (or `merge` or `select`, if that made it)"), "targets": ("teacher", "")}
"""The command that makes a folder, by what it holds, and others that may have made it, which no record tells apart."""

_PACKAGES = ("sea-pipeline", "torch", "pyarrow", "pillow", "numpy")
_ENCODERS_PACKAGES = ("open_clip_torch", "timm", "transformers", "tokenizers")
"""They build models and tokenizers. The fingerprint holds a hub's tokenizer by its name, so a commit says what may have
changed it."""


class Ledger:
    """The plan, the finished shards and the missing shards of an output folder."""

    def __init__(self, root: Place, dataset: DatasetFile, image_root: str | None = None) -> None:
        self.root = root
        self.dataset = dataset
        self.plan = Plan(root, dataset)
        self.image_root = image_root or dataset.image_root
        """The root of the planned `uri`s, for `open_source`; it differs from the dataset's if images have moved."""
        self.fields = dataset.latest_fields()
        """The fields of this run: an input may have grown since the last extension without bringing an image."""
        self.versions: Mapping[str, Version] = {}
        """The versions of the input's files that this run has listed; see `Listing`."""
        self.max_bad = 0.01
        """The share of bad images that this run allows."""

    @classmethod
    def open(cls, root: Place) -> "Ledger":
        """Open a folder that a run has begun.

        Raises:
            UserError: it is not such a folder, or was written by a newer version.
        """
        path = root / DATASET
        refuse_others(root)
        try:
            return cls(root, load_record(path, DatasetFile))
        except (StoreError, OtherVersionError):
            raise
        except UserError as problem:
            raise UserError(lost_beginning(str(problem))) from problem

    def at(self, root: Place) -> "Ledger":
        """Return the ledger of this run for another path of the same folder."""
        ledger = Ledger(root, self.dataset, self.image_root)
        ledger.fields, ledger.versions, ledger.max_bad = self.fields, self.versions, self.max_bad
        return ledger

    def samples(self, shard: int) -> list[Sample]:
        """Read the planned images of one shard."""
        return self.plan.samples(shard)

    def shard_path(self, shard: int) -> Place:
        """Return the path of a shard's file, written or not."""
        name = f"part-{shard:05d}-of-{self.plan.file_of(shard).end:05d}.parquet"
        return self.root / self.dataset.kind / name

    def quarantine_path(self, shard: int) -> Place:
        """Return the path of the table of a shard's bad images, written or not."""
        return self.root / QUARANTINE / f"{shard:05d}.parquet"

    def commit_path(self, shard: int) -> Place:
        """Return the path of a shard's commit, written or not."""
        return self.root / COMMITS / f"{shard:05d}.json"

    def read_commit(self, shard: int) -> Commit | None:
        """Read a shard's commit and check that its files exist, or return None if there is no commit.

        Raises:
            UserError: it is damaged, belongs to another run or shard, or a file is absent or has another size.
        """
        commit = self.recorded(shard)
        files = commit.files if commit else []
        if problem := next(filter(None, (check_size(self.root, file) for file in files)), None):
            raise UserError(problem)
        return commit

    def recorded(self, shard: int) -> Commit | None:
        """Read a shard's commit without looking at its files, or return None if there is no commit.

        Raises:
            UserError: it is damaged, or belongs to another run or shard.
        """
        if (commit := find_record(self.commit_path(shard), Commit)) is None:
            return None
        paths = [self.shard_path(shard), *([self.quarantine_path(shard)] if commit.bad else [])]
        names = [below(self.root, path) for path in paths]
        if problem := self.plan.file_of(shard).differs(commit, shard, self.dataset.fingerprint, names):
            raise UserError(f"{self.commit_path(shard)}: damaged: {problem}")
        return commit

    def commit(self, shard: int) -> Commit | None:
        """Return the shard's commit if it is valid, else None.

        A valid commit passes `read_commit`.
        """
        try:
            return self.read_commit(shard)
        except StoreError:
            raise
        except UserError:
            return None

    def commits(self) -> Iterator[Commit]:
        """Yield the valid commits in plan order."""
        return filter(None, map_over_store(self.root, self.commit, range(self.dataset.shards)))

    def done(self) -> FolderProgress:
        """Sum up the progress of this folder from its commits."""
        return FolderProgress.of(list(self.commits()))

    def missing(self) -> list[int]:
        """List the shards that are not finished."""
        done = {commit.shard for commit in self.commits()}
        return [shard for shard in range(self.dataset.shards) if shard not in done]

    @property
    def finished(self) -> bool:
        """Tell whether a manifest covers everything that is planned."""
        return self._finished() is not None

    @property
    def complete(self) -> bool:
        """Tell whether nothing is left to do.

        The folder is finished, every shard's commit is valid, and the other files are as written.
        """
        return self.is_complete(self.commits())

    def is_complete(self, commits: Iterable[Commit]) -> bool:
        """Tell whether the folder is finished and whole, given its valid commits."""
        manifest = self._finished()
        if manifest is None or sum(1 for _ in commits) < self.dataset.shards:
            return False
        return not any(map_over_store(self.root, lambda file: check_file(self.root, file), manifest.other_files))

    @property
    def finishing(self) -> str:
        """Say how an unfinished folder is finished."""
        kind, option = self.dataset.kind, " --extend" if self.dataset.parts else ""
        if kind not in _COMMANDS:
            return "run the same command again"
        name, others = _COMMANDS[kind]
        return f"run the same `{name}{option}` command again{others}"

    def write_quarantine(self, shard: int, bad: Sequence[BadSample]) -> None:
        """Write the table of a shard's bad images, or remove an old one if there are none."""
        path = self.quarantine_path(shard)
        if not bad:
            path.unlink(missing_ok=True)  # of an earlier attempt that was taken back
            return
        with publish(path, self.root) as scratch:
            write_quarantine(scratch, bad)

    def quarantined(self, commits: Iterable[Commit] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the bad images of the finished shards, or of those of some commits.

        Each has image_id, uri, stage, error, message and image_sha256.
        """
        for commit in self.commits() if commits is None else commits:
            if commit.bad:
                with self.reading(commit.files[1]):
                    rows = read_quarantine(self.quarantine_path(commit.shard))
                yield from rows

    @contextmanager
    def reading(self, file: File) -> Iterator[None]:
        """Replace the error of a file that cannot be read by what `verify` says of the file."""
        try:
            yield
        except StoreError:
            raise
        except (OSError, LookupError, ValueError, pa.ArrowException) as error:
            refuse_unreadable(self.root / file.path, error)
            problem = check_file(self.root, file) or f"{self.root / file.path}: damaged: {one_line(error)}"
            raise UserError(advised(problem)) from error

    def refuse_damaged_beginning(self) -> None:
        """Raise a UserError if the plan or another file of the beginning differs from what was written."""
        for file in self.dataset.files:
            if problem := check_file(self.root, file):
                raise UserError(advised(problem))

    def reopen_bad_shards(self, max_bad: float, shards: range | None = None) -> None:
        """Remove the commits of finished shards with more than this share of bad images, so that they are done again.

        Their input may have been mended. Shards that a manifest names are accepted. They are taken back only if
        `max_bad` is 0, which allows no bad image.
        """
        manifest = self.read_manifest() if max_bad else None
        accepted = len(manifest.shards) if manifest else 0
        for commit in self.commits():
            wanted = commit.shard >= accepted and (shards is None or commit.shard in shards)
            if wanted and commit.bad > max_bad * (commit.bad + commit.rows):
                (self.root / MANIFEST).unlink(missing_ok=True)
                self.commit_path(commit.shard).unlink(missing_ok=True)

    def record(self, shard: int, **facts: Any) -> Commit:  # noqa: ANN401 - the remaining fields of Commit
        """Write a shard's commit, or return another run's if that one is valid.

        The shard's data and its quarantine must be written before.
        """
        files = [self.shard_path(shard)] + ([self.quarantine_path(shard)] if facts["bad"] else [])
        commit = Commit(
            schema_version=self.dataset.schema_version,
            shard=shard,
            fingerprint=self.dataset.fingerprint,
            plan=self.plan.file_of(shard).sha256,
            files=[file_record(self.root, path) for path in files],
            host=platform.node(),
            versions=_versions(),
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            **facts,
        )
        path, data = self.commit_path(shard), commit.to_bytes()
        try:
            publish_bytes(path, data, self.root, exclusive=True)
        except FileExistsError:  # another run's, written without a lock between us, or one that is not valid any more
            faster = self.commit(shard)
            if faster and not any(check_file(self.root, file) for file in faster.files):  # ours may have replaced them
                return faster
            publish_bytes(path, data, self.root)
        return commit

    def finish(self, other_files: Sequence[Place]) -> Manifest:
        """Write the manifest from all commits.

        Every shard must be finished.

        Raises:
            UserError: the plan or the word list is not what the shards were made with, or another process has taken
                shards back at the same time.
        """
        self.refuse_damaged_beginning()
        commits = list(self.commits())
        if len(commits) != self.dataset.shards:
            raise UserError(f"{self.root}: another run takes shards back at the same time; run the command again")
        manifest = self.manifest_of(commits, [file_record(self.root, path) for path in other_files])
        publish_bytes(self.root / MANIFEST, manifest.to_bytes(), self.root)
        sweep(self.root)  # files of killed runs
        return manifest

    def manifest_of(self, commits: Sequence[Commit], others: Sequence[File]) -> Manifest:
        """Build the manifest from all commits and the stage's files next to the shards."""
        return Manifest(
            **self.dataset.model_dump(include={"schema_version", "kind", "fields", "fingerprint", "plan"}),
            rows=sum(commit.rows for commit in commits),
            bad=sum(commit.bad for commit in commits),
            shards=[commit.files[0] for commit in commits],
            shard_rows=[commit.rows for commit in commits],
            other_files=[*self.dataset.files, *others, *(file for commit in commits for file in commit.files[1:])],
        )

    def manifest(self) -> Manifest:
        """Return the manifest of a finished folder.

        Raises:
            UserError: the folder is not finished, or its manifest is damaged.
        """
        manifest = self._finished()
        if manifest is None:
            done = self.dataset.shards - len(self.missing())
            raise UserError(
                f"{self.root}: expected a finished folder; {done} of {self.dataset.shards} shards are done; "
                f"{self.finishing}"
            )
        return manifest

    def read_manifest(self) -> Manifest | None:
        """Read the manifest if there is one, else return None.

        It covers all that is planned, or what was planned before an extension.

        Raises:
            UserError: it is damaged.
        """
        return find_record(self.root / MANIFEST, Manifest)

    def _finished(self) -> Manifest | None:
        manifest = self.read_manifest()
        return None if manifest is None or self.is_extended_since(manifest) else manifest

    def is_extended_since(self, manifest: Manifest) -> bool:
        """Tell whether the folder was extended after this manifest was written."""
        return bool(self.dataset.parts) and len(manifest.shards) < self.dataset.shards


def _versions() -> dict[str, str]:
    """Return the versions of the packages that may change a shard's rows, without encoders' that are not installed."""
    found = {name: installed_version(name) for name in (*_PACKAGES, *_ENCODERS_PACKAGES)}
    return {name: each or "unknown" for name, each in found.items() if each or name in _PACKAGES}

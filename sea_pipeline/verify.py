"""Whether an output folder's files are as they were written."""

from collections.abc import Callable
from typing import NamedTuple

from sea_pipeline.errors import UserError
from sea_pipeline.ledger import Ledger
from sea_pipeline.records import Commit, File, check_file, load_record
from sea_pipeline.storage import below, entries


class Checked(NamedTuple):
    """What `check_files` found."""

    files: list[File]
    """Every file that a record names."""
    problems: list[str]
    """A line for each that differs from its record, and for each record that is damaged or gone."""
    missing: list[int]
    """The shards that are not finished."""
    finished: bool
    """See `Ledger.finished`."""


def check_files(ledger: Ledger, advance: Callable[[int], None] = lambda _: None) -> Checked:
    """Hashes every file that a record of the folder names, finished or not; tells `advance` of the shards."""
    files: dict[str, File] = {}
    problems: list[str] = []
    blamed: set[str] = set()
    named = list(ledger.dataset.files)
    missing, finished = ledger.missing(), ledger.finished
    for path in entries(ledger.root / "commits"):
        try:
            named += load_record(path, Commit).files
        except UserError as error:
            problems.append(str(error))
            blamed.add(below(ledger.root, path))
    if finished:
        manifest = ledger.manifest()
        named += [*manifest.shards, *manifest.other_files]
    for file in named:
        if files.setdefault(file.path, file) != file:
            problems.append(f"{ledger.root / file.path}: two records of it differ")
    for file in files.values():
        if problem := check_file(ledger.root, file):
            problems.append(problem)
            blamed.add(file.path)
        advance(file.path.startswith(f"{ledger.dataset.kind}/"))
    for shard in missing if finished else ():
        paths = ledger.commit_path(shard), ledger.shard_path(shard), ledger.quarantine_path(shard)
        if blamed.isdisjoint(below(ledger.root, path) for path in paths):
            problems.append(
                f"{paths[0]}: expected the record of a finished shard; found none of this folder; run {ledger.command} "
                "again"
            )
    return Checked(list(files.values()), problems, missing, finished)

"""Whether an output folder's files are as they were written."""

from collections.abc import Callable
from typing import NamedTuple

from sea_pipeline.errors import UserError
from sea_pipeline.ledger import Ledger
from sea_pipeline.records import Commit, File, check_file, load_record
from sea_pipeline.storage import entries


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
    named = list(ledger.dataset.files)
    missing, finished = ledger.missing(), ledger.finished
    for path in entries(ledger.root / "commits"):
        try:
            named += load_record(path, Commit).files
        except UserError as error:
            problems.append(str(error))
    if finished:
        manifest = ledger.manifest()
        named += [*manifest.shards, *manifest.other_files]
    for file in named:
        if files.setdefault(file.path, file) != file:
            problems.append(f"{ledger.root / file.path}: two records of it differ")
    for file in files.values():
        problem = check_file(ledger.root, file)
        problems += [problem] if problem else []
        advance(file.path.startswith(f"{ledger.dataset.kind}/"))
    for shard in missing if finished else ():
        names = str(ledger.commit_path(shard)), str(ledger.shard_path(shard)), str(ledger.quarantine_path(shard))
        if not any(problem.startswith(names) for problem in problems):
            problems.append(
                f"{names[0]}: expected the record of a finished shard; found none of this folder; run {ledger.command} "
                "again"
            )
    return Checked(list(files.values()), problems, missing, finished)

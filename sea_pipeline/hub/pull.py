"""Pull a dataset that `push` has written into a folder of this machine, complete and verified or not at all.

Files go into a temporary folder next to the output, `.NAME.pulling`. The same command finishes a pull that was killed,
and keeps the files that have the right hash.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import require
from sea_pipeline.core.parallel import ThreadPool, prefetched_map
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.hub.files import HubFile, hub_files, is_same, paths_of, refuse_other_names
from sea_pipeline.output.folder import DATASET, MANIFEST
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import DatasetFile, Manifest, load_record
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage.hub import asking, commit_of, silent_client
from sea_pipeline.storage.leftovers import is_leftover
from sea_pipeline.storage.locks import claimed_for_run
from sea_pipeline.storage.paths import entries, place
from sea_pipeline.storage.publish import check_replaceable, remove_folder, replace_folder, sync, sync_folder, writing

_AT_ONCE = 8
"""The number of files that are fetched at once."""


@dataclass(frozen=True)
class Pulled:
    """The result of a finished pull."""

    name: str
    revision: str
    """The commit on the hub."""
    folder: str
    files: int
    bytes: int
    fetched: int
    """The number of files that no earlier attempt had fetched."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields above for machines."""
        return asdict(self)


def pull(
    name: str,
    out: str | Path | None = None,
    *,
    revision: str | None = None,
    reporter: Reporter = SILENT,
) -> Pulled:
    """Fetch the folder that a dataset was pushed from, byte for byte.

    Files that push has added to the dataset are left out.

    Args:
        name: OWNER/NAME.
        out: the folder, which is new or holds the same; None for one below `runs/labels` or `runs/targets`.
        revision: a branch, a tag or a commit; None for the present state.
        reporter: shows messages and progress.

    Raises:
        UserError: there is no such dataset or revision, sea-pipeline did not push it or did not finish, `out` holds
            something else, a file differs from its record, or the hub cannot be reached.
    """
    refuse_other_names(name)
    commit = commit_of(name, revision)
    there, shown = hub_files(name, commit), f"{name}@{commit[:12]}"
    kind, paths = _named(name, commit, there, shown)
    target = Path(out) if out is not None else Path("runs") / kind / name.partition("/")[2]
    size = sum(there[path].bytes for path in paths)
    done = Pulled(name, commit, str(target), len(paths), size, 0)
    if _is_there(target, there, reporter):
        return done
    real = Path(os.path.realpath(target))  # the folder that a link leads to, or `.` is
    check_replaceable(real)
    scratch = real.with_name(f".{real.name}.pulling")
    with claimed_for_run(scratch), silent_client():
        if _came_first(target, there, scratch, reporter):
            return done
        reporter.message(f"fetching {len(paths):,} files, {decimal(size)}, to {target}")
        fetched = _fetch(name, commit, there, scratch, paths, reporter)
        _settle(scratch, paths, shown)
        with writing(target):
            is_here = replace_folder(real, scratch)
        sync(real.parent)
    if is_here:
        reporter.message(f"{real}: was replaced; a shell that is in it sees the files after `cd .`")
    return replace(done, fetched=fetched)


def _came_first(target: Path, there: dict[str, HubFile], scratch: Path, reporter: Reporter) -> bool:
    """Tell whether another pull has finished the folder, for which this one waited, and remove what is for nothing.

    Raises:
        UserError: see `_is_there`.
    """
    is_over = True
    try:
        is_over = _is_there(target, there, reporter)
    finally:
        if is_over:
            with suppress(OSError):  # it holds files of a pull that was killed
                scratch.rmdir()
    return is_over


def _named(name: str, commit: str, there: dict[str, HubFile], shown: str) -> tuple[str, list[str]]:
    """Return the kind of the folder, and the paths of all its files.

    Raises:
        UserError: its push was not finished, or its records do not agree.
    """
    if lacking := [file for file in (DATASET, MANIFEST) if file not in there]:
        raise UserError(
            f"{shown}: expected a folder that sea-pipeline push has sent to its end; found no {lacking[0]}; its owner "
            "finishes it by the same push"
        )
    remote = place(f"hf://datasets/{name}@{commit}")
    dataset, manifest = load_record(remote / DATASET, DatasetFile), load_record(remote / MANIFEST, Manifest)
    if dataset.shards != len(manifest.shards):
        raise UserError(
            f"{shown}: expected a manifest of {dataset.shards:,} shards, as its dataset.json says; found one of "
            f"{len(manifest.shards):,}; its owner pushes it again"
        )
    paths = paths_of(dataset, manifest)
    if lacking := [path for path in paths if path not in there]:
        raise UserError(
            f"{shown}: expected {lacking[0]}, which its records name; found none; its owner pushes it again"
        )
    return dataset.kind, paths


def _is_there(target: Path, there: dict[str, HubFile], reporter: Reporter) -> bool:
    """Tell whether a folder already holds what would be pulled.

    A folder that is absent or empty does not.

    Raises:
        UserError: the folder holds something else, or is damaged.
    """
    if not target.exists() or (target.is_dir() and not entries(target)):
        return False
    others = [name for name in (DATASET, MANIFEST) if not is_same(target / name, there[name])]
    if len(others) == 1:
        raise UserError(
            f"{target}: expected no such folder, or the same one; found another state of it, or a damaged {others[0]}; "
            f"choose another --out, or remove {target}, and pull it again"
        )
    if others:
        raise UserError(
            f"{target}: expected no such folder, or the same one; found something else; choose another --out"
        )
    ledger = Ledger.open(target)
    with reporter.progress("checking", ledger.dataset.shards) as advance:
        if problems := check_files(ledger, advance).problems:
            raise UserError(f"{problems[0].partition('; restore')[0]}; remove {target}, and pull it again")
    return True


def _fetch(
    name: str, commit: str, there: dict[str, HubFile], scratch: Path, paths: Sequence[str], reporter: Reporter
) -> int:
    """Fetch the files that are absent or have another hash, and return how many these were."""
    hub = require("huggingface_hub", "data")
    missing = [path for path in paths if not is_same(scratch / path, there[path])]

    def fetch(path: str) -> None:
        remove_folder(scratch / path)
        (scratch / path).unlink(missing_ok=True)  # the client would believe that the file is whole, by its times
        with asking(f"{name}@{commit[:12]}"), writing(scratch / path):
            hub.hf_hub_download(name, path, repo_type="dataset", revision=commit, local_dir=scratch)

    with (
        reporter.progress("fetching", len(paths), len(paths) - len(missing)) as advance,
        ThreadPool(_AT_ONCE) as pool,
    ):
        try:
            for _ in prefetched_map(pool, fetch, missing):
                advance(1)
        finally:
            pool.shutdown(cancel_futures=True)  # if one fails, do not wait for the others
    for path in missing:
        if not is_same(scratch / path, there[path]):
            (scratch / path).unlink(missing_ok=True)
            raise UserError(f"{name}@{commit[:12]}: {path}: came damaged; run the same command again")
    return len(missing)


def _settle(scratch: Path, paths: Sequence[str], shown: str) -> None:
    """Remove all but the folder's own files, verify them and flush them to disk."""
    shutil.rmtree(scratch / ".cache", ignore_errors=True)  # made by huggingface_hub
    own = set(paths)
    for path in [each for each in scratch.rglob("*") if each.is_file()]:
        name = path.relative_to(scratch).as_posix()
        if name not in own and not is_leftover(name):  # left by a pull of another revision
            path.unlink()
    if problems := check_files(Ledger.open(scratch)).problems:
        raise UserError(f"{shown}: its files do not agree with its records: {problems[0]}")
    sync_folder(scratch)

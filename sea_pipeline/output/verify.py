"""Check that an output folder's files are as written and its records agree.

Every reader uses it.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.parallel import ThreadPool, prefetched_map
from sea_pipeline.core.progress import Advance
from sea_pipeline.output.folder import COMMITS, DATASET, MANIFEST, QUARANTINE, advised, lost_beginning
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.plan import plan_sha256, read_plan
from sea_pipeline.output.records import Commit, File, Manifest, check_file, check_size, file_record, whole_record
from sea_pipeline.storage.parquet import open_parquet
from sea_pipeline.storage.paths import Place, entries, map_over_store
from sea_pipeline.storage.retry import StoreError, looking

_SUFFIXES = {".json", ".parquet", ".safetensors", ".txt"}
"""The suffixes of the files next to the folders."""
HASHING = 4
"""Threads that hash files. More gain little on one disk."""


class CheckResult(NamedTuple):
    """The result of `check_files`."""

    files: list[File]
    """All files that a record names."""
    problems: list[str]
    """A line for each file that differs from its record and for each record that is damaged or gone. It says what is
    wrong and what brings the file back."""
    missing: list[int]
    """The shards that are not finished."""
    finished: bool
    """See `Ledger.finished`."""
    commits: Sequence[Commit] = ()
    """The valid ones."""


def check_files(ledger: Ledger, advance: Advance = lambda _: None, *, shards: bool = True) -> CheckResult:
    """Compare the records of a folder, finished or not, with each other and with the files they name.

    Files are hashed. Those of shards are hashed only if `shards`, because that takes long. Otherwise their sizes are
    compared. Calls `advance` with 1 for each file of a shard and with 0 for each other file.
    """
    root, dataset = ledger.root, ledger.dataset
    if problem := misplaced(ledger):
        return CheckResult([], [problem], [], finished=False)
    lines = [advised(problem) for file in dataset.files if (problem := check_file(root, file))]
    if not lines and (problem := dataset_problem(ledger)):
        return CheckResult(dataset.files, [problem], [], finished=False)
    manifest, problem = manifest_or_problem(ledger)
    commits, problems = _commits(ledger, len(manifest.shards) if manifest is not None else 0)
    problems += [problem] if problem else []
    finished = manifest is not None and not ledger.is_extended_since(manifest)
    blamed: dict[str, str] = {}
    if manifest is not None and finished and not (lines or problems) and len(commits) == dataset.shards:
        blamed = contradictions(ledger, manifest, commits)
    if (problems or blamed) and not lines and (problem := plan_problem(ledger)):
        return CheckResult(dataset.files, [problem], [], finished=False)
    # Files next to the shards may be newer than a manifest that does not cover all shards.
    others = manifest.other_files if manifest is not None and finished and MANIFEST not in blamed else []
    named = [*others, *(file for commit in commits for file in commit.files), *dataset.files]
    files = list({file.path: file for file in named}.values())

    def differs(file: File) -> str | None:
        is_shard = file.path.startswith(f"{dataset.kind}/")
        checked = file.path in blamed or file in dataset.files
        found = None if checked else (check_file if shards or not is_shard else check_size)(root, file)
        advance(is_shard)
        return found

    with ThreadPool(HASHING) as pool:
        problems += [*blamed.values(), *filter(None, prefetched_map(pool, differs, files))]
    missing = sorted(set(range(dataset.shards)) - {commit.shard for commit in commits})
    lines += [advised(problem) for problem in dict.fromkeys(problems)]
    return CheckResult(files, lines, missing, finished, commits)


def refuse_damage(ledger: Ledger, advance: Advance = lambda _: None, *, shards: bool = False) -> Sequence[Commit]:
    """Return the commits of a folder in which `check_files` finds no problem, by default without reading shards.

    Raises:
        UserError: it finds one.
    """
    checked = check_files(ledger, advance, shards=shards)
    if checked.problems:
        raise UserError(checked.problems[0])
    return checked.commits


def misplaced(ledger: Ledger) -> str | None:
    """Describe a folder in the place of a file, or a file in the place of a folder, or return None.

    A store elsewhere has no folders.
    """
    root = ledger.root
    if not isinstance(root, Path):
        return None
    with looking(root):
        for name in (COMMITS, QUARANTINE, ledger.dataset.kind):
            if (root / name).is_file():
                return advised(f"{root / name}: expected a folder; found a file")
        files: list[Place] = [path for path in entries(root) if path.suffix in _SUFFIXES]
        for shard in range(ledger.dataset.shards):
            files += [ledger.commit_path(shard), ledger.shard_path(shard), ledger.quarantine_path(shard)]
        return next((advised(f"{path}: expected a file; found a folder") for path in files if path.is_dir()), None)


def dataset_problem(ledger: Ledger) -> str | None:
    """Describe how the numbers of `dataset.json` differ from those of the plan files, or return None.

    The plan files must be as written.
    """
    records = {file.path: file for file in ledger.dataset.files}
    for part in ledger.plan.files:
        if part.path.name not in records:
            expected = f"expected {part.path.name} among its files"
            return lost_beginning(f"{ledger.root / DATASET}: damaged: {expected}, found {', '.join(records) or 'none'}")
        with ledger.reading(records[part.path.name]):
            metadata = open_parquet(part.path).metadata
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if rows != [part.images_of(shard) for shard in range(part.first, part.end)]:
            expected = f"{sum(rows)} images in {len(rows)} shards of {max(rows, default=0)} at most"
            found = f"{part.images} in {part.end - part.first} of {part.shard_size}"
            return lost_beginning(
                f"{ledger.root / DATASET}: damaged: expected {expected}, as {part.path.name} has; found {found}"
            )
    return None


def plan_problem(ledger: Ledger) -> str | None:
    """Describe a plan, version or kind in `dataset.json` that is not what was written, or return None."""
    path, plan, dataset = ledger.root / DATASET, ledger.plan, ledger.dataset
    hashes = {part.sha256: plan_sha256(read_plan(part.path)) for part in plan.files}
    hashes[dataset.plan] = plan_sha256(plan)
    for said, found in hashes.items():
        if said != found:
            return lost_beginning(f"{path}: damaged: plan: expected {found[:12]}…, as the plan has; found {said[:12]}…")
    if commit := whole_record(ledger.commit_path(0), Commit):
        if commit.schema_version != dataset.schema_version:
            versions = f"expected {commit.schema_version}, as the commits say; found {dataset.schema_version}"
            return lost_beginning(f"{path}: damaged: schema_version: {versions}")
        first = commit.files[0].path.partition("/")[0]
        if first != dataset.kind and not (ledger.root / dataset.kind).is_dir():
            kinds = f"expected {first}, as the commits say; found {dataset.kind}"
            return lost_beginning(f"{path}: damaged: kind: {kinds}")
    if other := _other_fingerprint(ledger):
        prints = f"expected {other[:12]}…, as the commits say; found {dataset.fingerprint[:12]}…"
        return lost_beginning(f"{path}: damaged: fingerprint: {prints}")
    return None


def _other_fingerprint(ledger: Ledger) -> str | None:
    """Return the fingerprint of two or more other records, if none has that of `dataset.json`."""
    found: Counter[str] = Counter()
    if manifest := whole_record(ledger.root / MANIFEST, Manifest):
        found[manifest.fingerprint] += 1
    for path in entries(ledger.root / COMMITS):
        if commit := whole_record(path, Commit):
            found[commit.fingerprint] += 1
        if ledger.dataset.fingerprint in found:
            return None
    return next((fingerprint for fingerprint, count in found.most_common(1) if count > 1), None)


def manifest_or_problem(ledger: Ledger) -> tuple[Manifest | None, str | None]:
    """Read the manifest, or describe its damage; neither if there is none."""
    try:
        return ledger.read_manifest(), None
    except StoreError:
        raise
    except UserError as problem:
        return None, str(problem)


def _commits(ledger: Ledger, covered: int) -> tuple[list[Commit], list[str]]:
    """Read the valid commits, and a line for each other one.

    A line is written for a damaged commit and for one of the first `covered` shards that is absent.
    """

    def look(shard: int) -> Commit | str | None:
        try:
            commit = ledger.read_commit(shard)
        except StoreError:
            raise
        except UserError as problem:
            return str(problem)
        gone = commit is None and shard < covered
        return f"{ledger.commit_path(shard)}: expected the record of a finished shard; found none" if gone else commit

    found = list(map_over_store(ledger.root, look, range(ledger.dataset.shards)))
    return [each for each in found if isinstance(each, Commit)], [each for each in found if isinstance(each, str)]


def contradictions(ledger: Ledger, manifest: Manifest, commits: Sequence[Commit]) -> dict[str, str]:
    """Describe, by path, what the manifest and the commits say differently, and which is right.

    All shards must have commits.
    """
    root = ledger.root
    tables = [file for commit in commits for file in commit.files[1:]]
    beginning, behind = len(ledger.dataset.files), len(manifest.other_files) - len(tables)
    expected = ledger.manifest_of(commits, manifest.other_files[beginning:behind])
    if expected == manifest:
        return {}
    paths = {file.path: ledger.commit_path(commit.shard) for commit in commits for file in commit.files}
    theirs = {file.path: file for file in [*manifest.shards, *manifest.other_files]}
    for ours in [*expected.shards, *tables]:
        if theirs.get(ours.path, ours) != ours and (actual := file_record(root, root / ours.path)) != ours:
            if actual == theirs[ours.path]:
                said = f"sha256 of {ours.path}: expected {actual.sha256[:12]}…, found {ours.sha256[:12]}…"
                return {ours.path: f"{paths[ours.path]}: damaged: {said}"}
            return {ours.path: str(check_file(root, ours))}
    difference = _difference(expected.model_dump(), manifest.model_dump())
    return {MANIFEST: f"{root / MANIFEST}: damaged: {difference}"}


def _difference(expected: Any, found: Any, name: str = "") -> str | None:  # noqa: ANN401 - whatever JSON holds
    """Describe the first difference between two JSON values, or return None."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        pairs = [(f"{name}.{key}", expected[key], found[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = [(f"{name}.{position}", *pair) for position, pair in enumerate(zip(expected, found, strict=True))]
    else:
        return None if expected == found else f"{name[1:]}: expected {expected!r:.80}; found {found!r:.80}"
    return next(filter(None, (_difference(one, other, position) for position, one, other in pairs)), None)

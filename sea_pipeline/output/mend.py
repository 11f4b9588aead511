"""Mend an output folder when its command runs again: take back damaged shards and rewrite damaged files.

The run does damaged shards again. The plan and the small files of the beginning follow from the same input.
`dataset.json` follows from them and the commits. The manifest, and the files that a stage writes next to the shards,
follow from the commits when the run ends.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.parallel import ThreadPool, prefetched_map
from sea_pipeline.core.progress import SILENT, Advance, Reporter
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.output.folder import DATASET, MANIFEST, advised
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.plan import plan_name, plan_sha256, read_plan, write_plan
from sea_pipeline.output.records import Commit, DatasetFile, File, Manifest, Part, check_file, file_record, whole_record
from sea_pipeline.output.verify import HASHING, contradictions, manifest_or_problem, misplaced
from sea_pipeline.storage.hashing import fingerprint_of
from sea_pipeline.storage.json_files import json_object
from sea_pipeline.storage.locks import locked
from sea_pipeline.storage.paths import Place
from sea_pipeline.storage.publish import publish, publish_bytes
from sea_pipeline.storage.retry import StoreError, refuse_unreadable


def reopen_damaged_shards(
    ledger: Ledger,
    shards: range,
    reporter: Reporter = SILENT,
) -> None:
    """Take back finished shards with damaged files, and a manifest that does not follow from the commits.

    Hashes every finished shard of `shards`. `reporter` shows the progress and names everything that is done again.

    Raises:
        UserError: a folder is in the place of a file, or a file in the place of a folder.
    """
    if problem := misplaced(ledger):
        raise UserError(problem)

    def damage(advance: Advance, shard: int) -> tuple[int, str | None]:
        found = _damage(ledger, shard)
        advance(1)
        return shard, found

    with reporter.progress("checking what is there", len(shards)) as advance, ThreadPool(HASHING) as pool:
        for shard, problem in prefetched_map(pool, partial(damage, advance), shards):
            if problem:
                with locked(ledger.root):  # another run may have done it again since
                    if problem := _damage(ledger, shard):
                        reporter.message(f"{problem}; shard {shard} is done again")
                        ledger.commit_path(shard).unlink(missing_ok=True)
    with locked(ledger.root):
        if problem := _manifest_problem(ledger):
            reporter.message(f"{problem}; it is made again")
            (ledger.root / MANIFEST).unlink(missing_ok=True)


def _damage(ledger: Ledger, shard: int) -> str | None:
    """Return the first problem with the files of a finished shard.

    None if there is none, or if the shard is not finished and so is done again anyway.
    """
    commit = ledger.commit(shard)
    if commit is None:
        return None
    return next(filter(None, (check_file(ledger.root, file) for file in commit.files)), None)


def _manifest_problem(ledger: Ledger) -> str | None:
    manifest, problem = manifest_or_problem(ledger)
    if manifest is None or ledger.is_extended_since(manifest):
        return problem
    commits = list(ledger.commits())
    if len(commits) < ledger.dataset.shards:
        return None
    return next(iter(contradictions(ledger, manifest, commits).values()), None)


def restored(ledger: Ledger, samples: Sequence[Sample], companions: Mapping[str, bytes]) -> Ledger:
    """Rewrite the plan and the small files of the beginning if they differ from their records.

    Args:
        ledger: the folder, with the same fields as this run.
        samples: this run's samples in their order.
        companions: this run's small files, by name.

    Raises:
        UserError: the files do not follow from this run's input, or a folder is in the place of one.
    """
    root, records = ledger.root, {file.path: file for file in ledger.dataset.files}
    plans = [part.path for part in ledger.plan.files]
    files: list[File] = []
    for path in (plans[0], *(root / name for name in companions), *plans[1:]):
        file = records.get(path.name)
        problem = f"{path}: expected a record of it; found none" if file is None else check_file(root, file)
        if file is None or problem:
            if path.is_dir():
                raise UserError(advised(f"{path}: expected a file; found a folder"))
            if path.name in companions:
                publish_bytes(path, companions[path.name], root)
            else:
                chosen = _planned(ledger, path, samples, problem or "")
                with publish(path, root) as scratch:
                    write_plan(scratch, chosen, ledger.dataset.shard_size)
            file = file_record(root, path)  # another version of a library may write other bytes
        files.append(file)
    if files == ledger.dataset.files:
        return ledger
    dataset = ledger.dataset.model_copy(update={"files": files})
    publish_bytes(ledger.root / DATASET, dataset.to_bytes(), ledger.root)
    return Ledger(ledger.root, dataset, ledger.image_root)


def _planned(ledger: Ledger, path: Place, samples: Sequence[Sample], problem: str) -> list[Sample]:
    """Find the samples of the part whose plan file is lost.

    They are the ones that no other part holds.
    """
    part = next(part for part in ledger.plan.files if part.path == path)
    records = {file.path: file for file in ledger.dataset.files}
    held: set[tuple[str, str | None]] = set()
    for other in ledger.plan.files:
        if other != part and other.path.name in records and not check_file(ledger.root, records[other.path.name]):
            held |= {(sample.image_id, sample.problem) for sample in read_plan(other.path)}
    rest = [sample for sample in samples if (sample.image_id, sample.problem) not in held]
    if plan_sha256(rest) != part.sha256:
        raise UserError(
            f"{problem}; restore it, or give the very images that it was begun with, from which it is made anew, or "
            "choose another --out"
        )
    return rest


def is_lost(path: Place) -> bool:
    """Tell whether `dataset.json` is absent or is not JSON.

    A file that is JSON may be a later version's.
    """
    try:
        json_object(path.read_bytes())
    except FileNotFoundError:
        return True
    except OSError:  # such as a folder in its place, which `Ledger.open` refuses
        return False
    except ValueError:
        return True
    return False


def rebuild_dataset(
    root: Place,
    wanted: DatasetFile,
    samples: Sequence[Sample],
    companions: Mapping[str, bytes],
    growing: Collection[str],
) -> bool:
    """Rewrite a lost `dataset.json` if the folder's commits belong to this run.

    Returns whether it was written.

    Args:
        root: the folder.
        wanted: the dataset as this run would begin it.
        samples: this run's samples in their order.
        companions: this run's small files, by name.
        growing: the names of the fields that grow with the input.

    Raises:
        UserError: a folder is in the place of a plan file.
    """
    lost = _lost_dataset(root, wanted, samples, growing)
    if lost is None:
        return False
    dataset, held = lost
    plans = [root / plan_name(number) for number in range(len(held))]
    for path, planned in zip(plans, held, strict=True):
        if path.is_dir():
            raise UserError(advised(f"{path}: expected a file; found a folder"))
        with publish(path, root) as scratch:  # readable, but no record proves its bytes
            write_plan(scratch, planned, dataset.shard_size)
    for name, content in companions.items():
        publish_bytes(root / name, content, root)
    files = [file_record(root, path) for path in (plans[0], *(root / name for name in companions), *plans[1:])]
    publish_bytes(root / DATASET, dataset.model_copy(update={"files": files}).to_bytes(), root)
    return True


def _lost_dataset(
    root: Place, wanted: DatasetFile, samples: Sequence[Sample], growing: Collection[str]
) -> tuple[DatasetFile, list[Sequence[Sample]]] | None:
    """Rebuild the lost dataset without its `files`, and return it with the content of its plans.

    None if no commit belongs to it.
    """
    fields = wanted.fields
    if manifest := whole_record(root / MANIFEST, Manifest):
        grown = {name: fields[name] for name in growing if name in fields}
        if fingerprint_of(manifest.fields) == manifest.fingerprint and manifest.fields | grown == fields:
            fields = manifest.fields  # as they were at first
    for plans in (_plans(root), [samples]):
        if dataset := _committed(root, wanted, plans, fields):
            return dataset, plans
    return None


def _committed(
    root: Place, wanted: DatasetFile, plans: list[Sequence[Sample]], fields: dict[str, Any]
) -> DatasetFile | None:
    """Return the dataset of these plans if there is a commit of it.

    Removes from `plans` the plans of an extension that no commit follows.
    """
    while plans:
        whole = [sample for plan in plans for sample in plan]
        parts = [_part(plan, wanted.shard_size) for plan in plans]
        found = {
            "fields": fields,
            "fingerprint": fingerprint_of(fields),
            "plan": plan_sha256(whole),
            "images": len(whole),
            "shards": sum(part.shards for part in parts),
            "parts": parts if len(parts) > 1 else [],
        }
        ledger = Ledger(root, wanted.model_copy(update=found))
        last = ledger.plan.files[-1]
        if commit := next(recorded_commits(ledger, range(last.first, last.end)), None):
            return ledger.dataset.model_copy(update={"schema_version": commit.schema_version})
        plans.pop()  # an extension without a commit
    return None


def recorded_commits(ledger: Ledger, shards: range) -> Iterator[Commit]:
    """Yield this run's commits, also those whose files are gone.

    Such a shard is done again.
    """
    for shard in shards:
        try:
            commit = ledger.recorded(shard)
        except StoreError:
            raise
        except UserError:
            continue
        if commit:
            yield commit


def _part(plan: Sequence[Sample], shard_size: int) -> Part:
    return Part(plan=plan_sha256(plan), images=len(plan), shards=-(-len(plan) // shard_size))


def _plans(root: Place) -> list[Sequence[Sample]]:
    """Read the plan files in their order, up to the first that is absent or damaged."""
    plans: list[Sequence[Sample]] = []
    try:
        while True:
            plans.append(list(read_plan(root / plan_name(len(plans)))))
    except (OSError, ValueError, pa.ArrowException) as error:
        refuse_unreadable(root / plan_name(len(plans)), error)
    return plans

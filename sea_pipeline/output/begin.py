"""Begin an output folder, or continue one if the folder and the run belong together."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.pixels import BadImageError
from sea_pipeline.inputs.samples import Listing, Sample
from sea_pipeline.inputs.sources import kind_of, open_source
from sea_pipeline.inputs.sources.order import planning_order
from sea_pipeline.output.folder import COMMITS, DATASET, MANIFEST
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.mend import is_lost, rebuild_dataset, restored
from sea_pipeline.output.plan import plan_name, plan_sha256, read_plan, write_plan
from sea_pipeline.output.records import SCHEMA_VERSION, DatasetFile, Manifest, Part, file_record, whole_record
from sea_pipeline.output.verify import dataset_problem, plan_problem
from sea_pipeline.storage.hashing import differing_fields, file_sha256, fingerprint_of
from sea_pipeline.storage.locks import locked, refuse_without_locks
from sea_pipeline.storage.parquet import open_parquet
from sea_pipeline.storage.paths import Place, entries
from sea_pipeline.storage.publish import TEMPORARY, make_folder, publish, publish_bytes, sweep

Growing = Mapping[str, Callable[[Any], bool]]
"""By name of each field that grows with the input, a test whether this run's value has grown out of an earlier one."""

GONE = "images that are gone"
"""The name under which advice says what to do if they are the only obstacle, and the folder is finished."""


def open_or_create(
    root: Place,
    kind: str,
    fields: dict[str, Any],
    listing: Listing,
    shard_size: int,
    companions: dict[str, bytes],
    *,
    encoder: str | None = None,
    extend: bool = False,
    growing: Growing | None = None,
    advice: Mapping[str, str] | None = None,
    limited: bool = False,
) -> Ledger:
    """Begin an output folder, or continue one that has the same fields and the same images.

    `companions` are small files, by name, that are written next to the shards. `encoder` is a spec, see `DatasetFile`.
    With `extend`, new images become shards of their own after the planned ones. `advice` says by the name of a field
    what to do if it differs, and by `GONE`. `limited` says that --limit cuts `listing` short, which --extend refuses.

    Raises:
        UserError: the folder belongs to another run (naming the fields that differ), or to something else.
    """
    refuse_without_locks(root)
    samples = planning_order(listing, shard_size)
    wanted = DatasetFile(
        schema_version=SCHEMA_VERSION,
        kind=kind,
        fields=fields,
        fingerprint=fingerprint_of(fields),
        plan=plan_sha256(samples),
        images=len(samples),
        shards=-(-len(samples) // shard_size),
        shard_size=shard_size,
        source=listing.origin,
        image_root=listing.root,
        encoder=encoder,
        files=[],
    )
    grows: Growing = growing or {}
    asked = _Asked(wanted, samples, companions, grows, listing.ids, advice or {}, limited)
    make_folder(root)
    with locked(root) as has_lock:
        lost = is_lost(root / DATASET) and not rebuild_dataset(root, wanted, samples, companions, grows)
        created = _create(root, wanted, samples, companions, has_lock) if lost else None
        ledger = Ledger(root, created) if created else _continue_or_refuse(root, asked, extend, has_lock)
    if not created:
        sweep(root)
    ledger.versions = listing.versions
    return ledger


def _create(
    root: Place, dataset: DatasetFile, samples: Sequence[Sample], companions: dict[str, bytes], has_lock: bool
) -> DatasetFile | None:
    """Create the folder and return its dataset, or None if another process was first."""
    writers: dict[str, Callable[[Path], object]] = {
        plan_name(0): lambda scratch: write_plan(scratch, samples, dataset.shard_size),
        **{name: partial(Path.write_bytes, data=content) for name, content in companions.items()},
    }
    found = {path.name for path in entries(root)}
    if DATASET in found:
        return None
    strangers = sorted(found - {TEMPORARY, *writers})
    if strangers and not _has_lost_all(root, dataset):
        raise UserError(
            f"{root}: expected an empty folder or one that sea-pipeline began; found {strangers[0]!r} in it; "
            "choose another --out"
        )
    return write_beginning(root, dataset, writers, has_lock)


def _has_lost_all(root: Place, dataset: DatasetFile) -> bool:
    """Tell, from its plan and its manifest, whether a folder of this run has lost its commits, too."""
    if any(entries(root / COMMITS)):
        return False
    try:
        if plan_sha256(read_plan(root / "plan.parquet")) != dataset.plan:
            return False
    except (OSError, LookupError, ValueError, pa.ArrowException):
        return False
    manifest = whole_record(root / MANIFEST, Manifest)
    return manifest is None or manifest.fingerprint == dataset.fingerprint


def write_beginning(
    root: Place, dataset: DatasetFile, writers: Mapping[str, Callable[[Path], object]], has_lock: bool
) -> DatasetFile | None:
    """Write the files that a folder is begun with, each by its function, then the dataset that records them.

    Returns that dataset, or None if another process was first. That can only happen without a lock between the two.
    """
    sweep(root)
    for name, write in writers.items():
        _write_first(root / name, root, write, has_lock)
    dataset = dataset.model_copy(update={"files": [file_record(root, root / name) for name in writers]})
    try:
        publish_bytes(root / DATASET, dataset.to_bytes(), root, exclusive=True)
    except FileExistsError:
        return None
    return dataset


def _write_first(path: Place, root: Place, write: Callable[[Path], object], has_lock: bool) -> None:
    """Write a file that the folder is begun with.

    If there are no locks, the first process to write it decides its content.
    """
    try:
        with publish(path, root, exclusive=not has_lock) as scratch:
            write(scratch)
            ours = file_sha256(scratch)
    except FileExistsError:
        if file_sha256(path) != ours:
            raise UserError(
                f"{path}: another run with other settings or images has begun this folder, or was killed as it did; "
                "choose another --out, or delete the file if no run is going on"
            ) from None


class _Difference(NamedTuple):
    """The difference between samples and planned ones. Order does not count, because each part is sorted by itself."""

    new: list[Sample]
    gone: list[Sample]
    grown: dict[str, Any]
    """The fields that have grown with the input."""
    others: list[str]
    """A phrase for each other field that differs."""
    ids: str | None = None
    """What the ids of the samples are, if all planned ids are gone."""

    def changed(self) -> set[str]:
        """Return the ids of the images in whose names other problems are found now."""
        return {sample.image_id for sample in self.new} & {sample.image_id for sample in self.gone}

    def __str__(self) -> str:
        changed = self.changed()
        parts = [*self.others, *(["the problems found in the names of the images"] if changed else [])]
        for samples, what in ((self.new, "new images"), (self.gone, GONE)):
            if ids := {sample.image_id for sample in samples} - changed:
                parts.append(f"{what}: {len(ids):,} (such as {min(ids)!r})")
        if self.ids is not None and self.new:
            changes = "more files, another form or another version of sea-pipeline change ids"
            parts.append(f"every id is another, as the ids are {self.ids} now; {changes}")
        return "; ".join(parts + [f"{name}: it has grown" for name in self.grown])


class _Asked(NamedTuple):
    """What a run wants of a folder."""

    wanted: DatasetFile
    samples: Sequence[Sample]
    companions: dict[str, bytes]
    growing: Growing
    ids: str
    """What the ids of the samples are; see `Listing`."""
    advice: Mapping[str, str]
    """By the name of a field that differs, or by `GONE`."""
    limited: bool


def _continue_or_refuse(root: Place, asked: _Asked, extend: bool, has_lock: bool) -> Ledger:
    """Return the folder's ledger if the folder and the run belong together, extending the folder if asked."""
    wanted, companions = asked.wanted, asked.companions
    while True:
        ledger = Ledger(root, Ledger.open(root).dataset, wanted.image_root)
        samples = _by_planned_ids(ledger, wanted, asked.samples)
        grown, others = _differing(ledger, wanted, asked.growing)
        if others:
            ledger.refuse_damaged_beginning()
        else:
            ledger = restored(ledger, samples, companions)
        is_other = others or ledger.dataset.plan != wanted.plan
        if problem := dataset_problem(ledger) or (plan_problem(ledger) if is_other else None):
            raise UserError(problem)
        difference = _compare(ledger, asked._replace(samples=samples), grown, others)
        may_grow = not (difference.others or difference.gone)
        if may_grow and difference.new and not extend:
            new = "all that is new with --extend and no --limit" if asked.limited else "it with --extend"
            raise UserError(f"{root}: was begun with less: {difference}; add {new}, or choose another --out")
        if not may_grow:
            begun = "cannot be extended" if extend else "holds another run"
            differing = "; ".join([str(difference), *_ways(ledger, asked._replace(samples=samples), difference)])
            raise UserError(f"{root}: {begun}; choose another --out. Differing: {differing}")
        _refuse_other_places(ledger, samples)
        _refuse_other_images(ledger)
        if not difference.new:
            _write_places(ledger, wanted)
            ledger.fields |= difference.grown
            return ledger
        _extend(ledger, wanted, difference, has_lock)


def _ways(ledger: Ledger, asked: _Asked, difference: _Difference) -> list[str]:
    """Select the advice that helps if a folder may not grow by a difference."""
    known, wanted = ledger.dataset.fields, asked.wanted.fields
    ways = [way for name, way in asked.advice.items() if name != GONE and known.get(name) != wanted.get(name)]
    only_gone = difference.gone and not (difference.others or difference.ids or difference.changed() or asked.limited)
    if only_gone and GONE in asked.advice and ledger.complete:
        with suppress(UserError):  # members of a tar that was written anew lie at other places
            _refuse_other_places(ledger, asked.samples)
            _refuse_other_images(ledger)
            ways.append(asked.advice[GONE])
    return ways


def _differing(ledger: Ledger, wanted: DatasetFile, growing: Growing) -> tuple[dict[str, Any], list[str]]:
    """Return the fields that have grown, and a phrase for each other field that differs."""
    found = ledger.dataset
    known = found.latest_fields()
    grown = {
        name: wanted.fields[name]
        for name, is_grown in growing.items()
        if name in known and known[name] != wanted.fields[name] and is_grown(known[name])
    }
    others = differing_fields(
        {"kind": found.kind, **known, **grown, "shard_size": found.shard_size},
        {"kind": wanted.kind, **wanted.fields, "shard_size": wanted.shard_size},
    )
    return grown, others


def _by_planned_ids(ledger: Ledger, wanted: DatasetFile, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Give rows of tables and members of tars the ids that they are planned with.

    If there are more files than when the folder was begun, a listing may put a file's name in front of every id.
    """
    if ledger.dataset.plan == wanted.plan or not kind_of(ledger.image_root):
        return samples
    planned: dict[str, list[str]] = {}
    try:
        for sample in ledger.plan:
            planned.setdefault(sample.uri, []).append(sample.image_id)
    except (OSError, LookupError, ValueError, pa.ArrowException):  # lost or damaged: `restored` sees to it
        return samples

    def as_planned(sample: Sample) -> Sample:
        file = sample.uri.rpartition("#")[0]
        fronts = (f"{file}/", f"{file.removesuffix('.tar')}/")
        ids = (known for known in planned.get(sample.uri, ()) if sample.image_id in {each + known for each in fronts})
        known = None if sample.problem else next(ids, None)
        return sample if known is None else sample._replace(image_id=known)

    return list(map(as_planned, samples))


def _compare(ledger: Ledger, asked: _Asked, grown: dict[str, Any], others: list[str]) -> _Difference:
    if ledger.dataset.plan == asked.wanted.plan:
        return _Difference([], [], grown, others)
    samples = asked.samples
    planned = {_identity(sample): sample for sample in ledger.plan}
    listed = {_identity(sample) for sample in samples}
    good = {identity: sample for identity, sample in planned.items() if not sample.problem}
    # What a listing found wrong may have been mended, or may be said in other words by now.
    bad = {sample.image_id for sample in planned.values() if sample.problem}
    new = [
        sample
        for sample in samples
        if _identity(sample) not in planned and not (sample.problem and sample.image_id in bad)
    ]
    gone = [sample for identity, sample in good.items() if identity not in listed]
    return _Difference(new, gone, grown, others, asked.ids if gone and len(gone) == len(good) else None)


def _extend(ledger: Ledger, wanted: DatasetFile, difference: _Difference, has_lock: bool) -> None:
    """Plan new images as a further part.

    Until `dataset.json` is replaced nothing has changed.
    """
    root, found = ledger.root, ledger.dataset
    path = root / plan_name(len(found.all_parts()))
    new = difference.new
    try:
        with publish(path, root, exclusive=not has_lock) as scratch:
            write_plan(scratch, new, found.shard_size)
    except FileExistsError:
        if Ledger.open(root).dataset != found:
            return
        new = _planned_by_another(path, new)
    part = Part(
        plan=plan_sha256(new), images=len(new), shards=-(-len(new) // found.shard_size), fields=difference.grown
    )
    extended = {
        "plan": plan_sha256([*ledger.plan, *new]),
        "images": found.images + part.images,
        "shards": found.shards + part.shards,
        "source": wanted.source,
        "image_root": wanted.image_root,
        "files": [*found.files, file_record(root, path)],
        "parts": [*found.all_parts(), part],
    }
    publish_bytes(root / DATASET, found.model_copy(update=extended).to_bytes(), root)


def _planned_by_another(path: Place, new: list[Sample]) -> list[Sample]:
    """Read the plan that another process has written while it extended the folder.

    That process may run now or may have been killed. Its plan counts.
    """
    planned = list(read_plan(path))
    if not {_identity(sample) for sample in planned} <= {_identity(sample) for sample in new}:
        raise UserError(
            f"{path}: another run extends this folder by other images, or was killed as it did; run the same command "
            "again when it is over, or delete the file if no run is going on"
        )
    return planned


def _write_places(ledger: Ledger, wanted: DatasetFile) -> None:
    """Write where the images are now, if that has changed.

    No hash covers these fields of `dataset.json`.
    """
    places = {name: getattr(wanted, name) for name in ("source", "image_root", "encoder")}
    dataset = ledger.dataset.model_copy(update=places)
    if dataset != ledger.dataset:
        publish_bytes(ledger.root / DATASET, dataset.to_bytes(), ledger.root)
        ledger.dataset = dataset


def _refuse_other_places(ledger: Ledger, samples: Sequence[Sample]) -> None:
    """Refuse samples whose place in their tar or table differs from the planned one.

    The plan holds these places, so another tar with the same names would give the bytes of other images.
    """
    places = {_identity(sample): sample.uri for sample in samples}
    moved = next((each for each in ledger.plan if places.get(_identity(each), each.uri) != each.uri), None)
    if moved is not None or kind_of(ledger.dataset.image_root) != kind_of(ledger.image_root):
        raise UserError(
            f"{ledger.root}: the image {(moved or samples[0]).image_id!r} was at another place of its input in "
            f"{ledger.dataset.source}, with which this folder was last run; choose another --out"
        )


def _refuse_other_images(ledger: Ledger) -> None:
    """Compare the first image of a few finished shards with the input's image of that name.

    Names alone do not tell two folders apart.
    """
    source = open_source(ledger.image_root)
    begun = (commit for commit in ledger.commits() if commit.rows)
    firsts: dict[str, bytes] = {}
    for commit in islice(begun, 8 if source.random_access else 1):
        try:
            row = open_parquet(ledger.shard_path(commit.shard)).read_row_group(0, columns=["uri", "image_sha256"])
            first = row.slice(0, 1).to_pylist()[0]
        except (OSError, LookupError, ValueError, pa.ArrowException):  # damaged: `reopen_damaged_shards` finds it later
            continue
        firsts[first["uri"]] = first["image_sha256"]
    for first in sorted(firsts, key=source.where):
        try:
            data = source.read(first)
        except (BadImageError, OSError):  # gone, or not to be read now: the run says so if it needs it
            continue
        if hashlib.sha256(data).digest() != firsts[first]:
            raise UserError(
                f"{ledger.root}: the image {first!r} was another one when this folder was begun than the one that "
                f"{ledger.image_root} has now; choose another --out"
            )


def _identity(sample: Sample) -> tuple[str, str | None]:
    return sample.image_id, sample.problem

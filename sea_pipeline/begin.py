"""Beginning an output folder, or going on with it: when a folder and a run belong together."""

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sea_pipeline.errors import UserError
from sea_pipeline.ledger import Ledger
from sea_pipeline.pixels import BadImageError
from sea_pipeline.plan import plan_sha256, write_plan
from sea_pipeline.records import (
    SCHEMA_VERSION,
    Dataset,
    check_file,
    differing_fields,
    file_record,
    fingerprint_of,
)
from sea_pipeline.samples import Listing, Sample
from sea_pipeline.sources import kind_of, open_source
from sea_pipeline.storage import TEMPORARY, alone, make_folder, publish, publish_bytes, sweep


def begin(
    root: Path,
    kind: str,
    fields: dict[str, Any],
    listing: Listing,
    shard_size: int,
    companions: dict[str, bytes],
    *,
    encoder: str | None = None,
) -> Ledger:
    """Begins a folder, or goes on with one that was begun with the same fields and the same images.

    `companions` are small files that belong beside the shards, by name; `encoder` is a spec, see `Dataset`.

    Raises:
        UserError: the folder belongs to another run (naming the fields that differ), or to something else.
    """
    samples = listing.samples
    wanted = Dataset(
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
    make_folder(root)
    with alone(root):
        if not (root / "dataset.json").exists():
            return Ledger(root, _create(root, wanted, samples, companions))
    ledger = Ledger(root, Ledger.open(root).dataset, listing.root)
    ledger.refuse_damage()
    _refuse_another_run(ledger, wanted, samples)
    _refuse_other_places(ledger, samples)
    _refuse_other_images(ledger)
    sweep(root)
    return ledger


def _create(root: Path, dataset: Dataset, samples: Sequence[Sample], companions: dict[str, bytes]) -> Dataset:
    plan = root / "plan.parquet"
    strangers = sorted({path.name for path in root.glob("*")} - {TEMPORARY, plan.name, *companions})
    if strangers:
        raise UserError(
            f"{root}: expected an empty folder or one that sea-pipeline began; found {strangers[0]!r} in it; "
            "choose another --out"
        )
    sweep(root)
    with publish(plan, root) as scratch:
        write_plan(scratch, samples, dataset.shard_size)
    for name, content in companions.items():
        publish_bytes(root / name, content, root)
    files = [file_record(root, root / name) for name in (plan.name, *companions)]
    dataset = dataset.model_copy(update={"files": files})
    publish_bytes(root / "dataset.json", dataset.to_bytes(), root)
    return dataset


def _refuse_another_run(ledger: Ledger, wanted: Dataset, samples: Sequence[Sample]) -> None:
    found = ledger.dataset
    differing = differing_fields(
        {"kind": found.kind, **found.fields, "shard_size": found.shard_size},
        {"kind": wanted.kind, **wanted.fields, "shard_size": wanted.shard_size},
    )
    if found.plan != wanted.plan:
        differing.append(_plan_difference(ledger, samples))
    if differing:
        raise UserError(f"{ledger.root}: holds another run; choose another --out. Differing: {'; '.join(differing)}")


def _refuse_other_places(ledger: Ledger, samples: Sequence[Sample]) -> None:
    """The plan says where in a tar or a table an image is: another tar of the same names would give others' bytes."""
    shards = range(ledger.dataset.shards)
    there = (sample for shard in shards for sample in ledger.samples(shard))
    moved = next((now for then, now in zip(there, samples, strict=True) if then.uri != now.uri), None)
    if moved is not None or kind_of(ledger.dataset.image_root) != kind_of(ledger.image_root):
        raise UserError(
            f"{ledger.root}: the image {(moved or samples[0]).image_id!r} was at another place of its input when this "
            f"folder was begun from {ledger.dataset.source}; choose another --out"
        )


def _refuse_other_images(ledger: Ledger) -> None:
    """Compares the first image of a few finished shards: names alone do not tell two folders apart."""
    source = open_source(ledger.image_root)
    begun = (commit for commit in ledger.commits() if commit.rows)
    for commit in islice(begun, 8 if source.random_access else 1):
        if problem := check_file(ledger.root, commit.files[0]):
            raise UserError(f"{problem}; delete it, and the same command makes it again")
        first = pq.ParquetFile(ledger.shard_path(commit.shard)).read_row_group(0, columns=["uri"])["uri"][0].as_py()
        try:
            data = source.read(first)
        except BadImageError:  # it is gone, which the run says if it needs it
            continue
        if hashlib.sha256(data).hexdigest() != commit.first_image_sha256:
            raise UserError(
                f"{ledger.root}: the image {first!r} was another one when this folder was begun than the one that "
                f"{ledger.image_root} has now; choose another --out"
            )


def _plan_difference(ledger: Ledger, samples: Sequence[Sample]) -> str:
    there = {sample.image_id for shard in range(ledger.dataset.shards) for sample in ledger.samples(shard)}
    asked = {sample.image_id for sample in samples}
    parts = [
        f"{what}: {len(ids):,} (such as {min(ids)!r})"
        for ids, what in ((asked - there, "new images"), (there - asked, "images that are gone"))
        if ids
    ]
    return ", ".join(parts) or "the problems found in the names of the images"

"""Write rows of labels into shards that are cut differently, with unchanged values."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.inputs.samples import BadSample, Sample
from sea_pipeline.join.folder import Joined, begin_folder, finish_folder
from sea_pipeline.labels.format import WORDS, LabelRow, ShardWriter, label_rows, packed, unpacked
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.plan import plan_sha256, write_plan
from sea_pipeline.output.quarantine import read_quarantine
from sea_pipeline.output.records import DatasetFile
from sea_pipeline.storage.hashing import file_sha256
from sea_pipeline.storage.parquet import open_parquet, shard_footer
from sea_pipeline.storage.paths import Place
from sea_pipeline.storage.publish import local_copy, publish

Chosen = tuple[Ledger, int, Sample]
"""An image with its folder and the number of its shard there."""


class _Shard(NamedTuple):
    """A finished shard of a source, of which one row group is in memory."""

    places: dict[str, tuple[int, int]]
    """By image id: the row group, and the row in it."""
    group: Callable[[int], Sequence[LabelRow]]
    """Reads a row group, and keeps it for the next call."""
    bad: dict[str, dict[str, Any]]
    patch_sum: npt.NDArray[np.float64]
    """(D,): the sum of the embeddings of all its patches."""

    def row(self, image_id: str) -> LabelRow:
        """Read the row of a good image."""
        group, row = self.places[image_id]
        return self.group(group)[row]


def rewrite(
    ledgers: Sequence[Ledger],
    chosen: Sequence[Chosen],
    out: str | Place,
    image_root: str,
    reporter: Reporter = SILENT,
) -> Joined:
    """Write some images of some folders into a new folder, in shards as `label` cuts them.

    Rows keep their values. The sum of patch embeddings, from which the means of `words.parquet` come when the folder is
    extended, is known only for whole shards. If only some images of a shard are taken, that share of the shard's sum is
    used.

    Args:
        ledgers: the sources.
        chosen: the images in their order, those of one shard next to each other.
        out: the new folder, or one that the same call has begun.
        image_root: the root of the images' paths.
        reporter: shows messages and progress.

    Raises:
        UserError: a file is damaged, or the folder holds something else.
    """
    first = max((ledger.dataset for ledger in ledgers), key=lambda dataset: dataset.schema_version)
    size, samples = ledgers[0].dataset.shard_size, [sample for _, _, sample in chosen]
    dataset = DatasetFile(
        **first.model_dump(include={"schema_version", "kind", "fields", "fingerprint", "encoder"}),
        plan=plan_sha256(samples),
        images=len(samples),
        shards=-(-len(samples) // size),
        shard_size=size,
        source=", ".join(dict.fromkeys(ledger.dataset.source for ledger in ledgers)),
        image_root=image_root,
        files=[],
    )
    plans = {"plan.parquet": lambda path: write_plan(path, samples, size)}
    ledger = begin_folder(out, dataset, plans, ledgers[0].root / WORDS, samples, reporter)
    missing = ledger.missing()
    with (
        ExitStack() as copy,
        reporter.progress(
            "writing", len(samples), len(samples) - sum(map(ledger.plan.file_of(0).images_of, missing))
        ) as advance,
    ):
        read = lru_cache(maxsize=1)(partial(_open_shard, copy))  # the next shard may begin in the one read last
        for shard in missing:
            _write_shard(ledger, shard, chosen[shard * size : (shard + 1) * size], read)
            advance(ledger.plan.file_of(shard).images_of(shard))
    manifest = finish_folder(ledger, ledgers)
    return Joined(str(out), manifest.rows, manifest.bad, dataset.shards, 0, len(missing))


def _open_shard(copy: ExitStack, ledger: Ledger, shard: int) -> _Shard:
    """Check a finished shard and find its rows; `copy` gets its copy on this machine, and drops the one before."""
    copy.close()
    commit = ledger.read_commit(shard)
    if commit is None:
        raise UserError(f"{ledger.root}: expected its shard {shard}, which was there; found none")
    file = commit.files[0]
    with ledger.reading(file):
        path = copy.enter_context(local_copy(ledger.shard_path(shard)))
        if (found := file_sha256(path)) != file.sha256:
            raise ValueError(f"expected sha256 {file.sha256[:12]}…, found {found[:12]}…")
        opened, footer = open_parquet(path), shard_footer(path)
        ids = opened.read(["image_id"], use_threads=False)["image_id"].to_pylist()
    sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
    places = ((group, row) for group, rows in enumerate(sizes) for row in range(rows))
    bad = {}
    if commit.bad:
        with ledger.reading(commit.files[1]):
            bad = {row["image_id"]: row for row in read_quarantine(ledger.quarantine_path(shard))}

    @lru_cache(maxsize=1)
    def group(number: int) -> Sequence[LabelRow]:
        with ledger.reading(file):
            table = opened.read_row_group(number, use_threads=False)
        return list(label_rows(table, ledger.dataset.fields["top_n"]))

    return _Shard(dict(zip(ids, places, strict=True)), group, bad, unpacked(footer["patch_sum"]))


def _write_shard(ledger: Ledger, shard: int, chosen: Sequence[Chosen], read: Callable[[Ledger, int], _Shard]) -> None:
    fields = ledger.dataset.fields
    patches, top_n = fields["grid"][0] * fields["grid"][1], fields["top_n"]
    bad: list[BadSample] = []
    count, first, patch_sum = 0, None, np.zeros_like(read(*chosen[0][:2]).patch_sum)
    with (
        publish(ledger.shard_path(shard), ledger.root) as scratch,
        ShardWriter(scratch, patches, top_n, ledger.dataset.schema_version) as writer,
    ):
        for (source, number), group in groupby(chosen, key=lambda one: (one[0], one[1])):
            there, taken = read(source, number), 0
            for _, _, sample in group:
                if (reason := there.bad.get(sample.image_id)) is not None:
                    bad.append(_bad(sample, reason))
                    continue
                row = there.row(sample.image_id)
                writer.add(row)
                first = first or row.image_sha256.hex()
                taken += 1
            if taken:
                # Only the sum of a whole shard is known, so a part of it counts by its share of the rows.
                share = 1.0 if taken == len(there.places) else taken / len(there.places)
                patch_sum = patch_sum + there.patch_sum * share
            count += taken
        footer = {"fingerprint": ledger.dataset.fingerprint, "shard": shard, **fields}
        writer.set_footer({**footer, "patches": count * patches, "patch_sum": packed(patch_sum)})
    ledger.write_quarantine(shard, bad)
    ledger.record(
        shard,
        rows=count,
        bad=len(bad),
        reasons=dict(Counter(f"{one.stage}: {one.error}" for one in bad)),
        seconds={},
        first_image_sha256=first,
        peak_memory_bytes=0,
        attempt=1,
    )


def _bad(sample: Sample, reason: dict[str, Any]) -> BadSample:
    return BadSample(sample, reason["stage"], reason["error"], reason["message"], reason["image_sha256"])

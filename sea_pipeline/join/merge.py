"""Merge several folders of labels by giving their shards new numbers, with hard links if the disk allows."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.parallel import ThreadPool, prefetched_map
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.inputs.sources import kind_of
from sea_pipeline.inputs.sources.files import open_files
from sea_pipeline.join.folder import Joined, begin_folder, bring, finish_folder, open_sources
from sea_pipeline.join.rewrite import rewrite
from sea_pipeline.labels.format import WORDS
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.plan import plan_name, plan_sha256
from sea_pipeline.output.records import Commit, DatasetFile, File, file_record
from sea_pipeline.output.verify import HASHING
from sea_pipeline.storage.hashing import differing_names, leaves
from sea_pipeline.storage.paths import Place, below, is_url
from sea_pipeline.storage.publish import publish, publish_bytes


def merge(
    folders: Sequence[str | Place],
    out: str | Place,
    *,
    image_root: str | None = None,
    reporter: Reporter = SILENT,
) -> Joined:
    """Merge several folders, labelled with the same settings, into one.

    Their images must differ, and are kept in the order of the folders. On one disk the shards become hard links and
    take no space. Elsewhere they are copied. Both are hashed like every output. Folders of different shard sizes or
    schema versions are written anew row by row, with the same values.

    Args:
        folders: two or more finished folders, on this machine or as URLs.
        out: the new folder, or one that the same call has begun.
        image_root: the root of the paths of all images now; None if all folders have the same root.
        reporter: shows messages and progress.

    Raises:
        UserError: the settings differ, an image is in two folders, the roots differ, or a file is damaged.
    """
    ledgers = open_sources(folders)
    _refuse_different(ledgers)
    root = _absolute(image_root) if image_root else _common_root(ledgers)
    samples = _disjoint(ledgers)
    reporter.message(f"merging {len(samples):,} images of {len(ledgers)} folders into {out}")
    if len({(ledger.dataset.shard_size, ledger.dataset.schema_version) for ledger in ledgers}) > 1:
        return rewrite(ledgers, samples, out, root, reporter)
    merged = _begin(ledgers, [sample for _, _, sample in samples], out, root, reporter)
    linked = _bring_shards(ledgers, merged, reporter)
    manifest = finish_folder(merged, ledgers)
    return Joined(str(out), manifest.rows, manifest.bad, merged.dataset.shards, linked, 0)


def _absolute(root: str) -> str:
    """Write a root as a listing does, so that the folder can be read from everywhere."""
    return root if is_url(root) or kind_of(root) else open_files(root).root


def _refuse_different(ledgers: Sequence[Ledger]) -> None:
    if len(ledgers) < 2:
        raise UserError(f"merge: expected two folders or more, found {len(ledgers)}")
    first, ours = ledgers[0], leaves(ledgers[0].dataset.fields)
    for other in ledgers[1:]:
        theirs = leaves(other.dataset.fields)
        if names := differing_names(ours, theirs):
            pair = f"{ours.get(names[0])!r:.80} and {theirs.get(names[0])!r:.80}"
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"{other.root}: expected the settings of {first.root}; found others: {names[0]}: {pair}{more}; labels "
                "of different settings do not go together"
            )


def _common_root(ledgers: Sequence[Ledger]) -> str:
    roots = list(dict.fromkeys(ledger.dataset.image_root for ledger in ledgers))
    if len(roots) > 1:
        raise UserError(
            f"{ledgers[0].root}: expected images below one root in all folders; found {roots[0]} and {roots[1]}; if "
            "all their paths start at one place now, give it as --image-root"
        )
    return roots[0]


def _disjoint(ledgers: Sequence[Ledger]) -> list[tuple[Ledger, int, Sample]]:
    """List all planned images, each with its folder and its shard, and refuse an image that is in two folders."""
    found: list[tuple[Ledger, int, Sample]] = []
    owner: dict[str, Ledger] = {}
    for ledger in ledgers:
        for shard in range(ledger.dataset.shards):
            for sample in ledger.samples(shard):
                if (other := owner.setdefault(sample.image_id, ledger)) is not ledger:
                    raise UserError(
                        f"{ledger.root}: expected other images than those of {other.root}; found {sample.image_id!r} "
                        "in both; sea-pipeline select makes a folder of what one of them has alone"
                    )
                found.append((ledger, shard, sample))
    return found


def _begin(
    ledgers: Sequence[Ledger], samples: Sequence[Sample], out: str | Place, image_root: str, reporter: Reporter
) -> Ledger:
    first = ledgers[0].dataset
    parts = [part for ledger in ledgers for part in ledger.dataset.all_parts()]
    plans = [file.path for ledger in ledgers for file in ledger.plan.files]
    dataset = DatasetFile(
        **first.model_dump(include={"schema_version", "kind", "fields", "fingerprint", "shard_size", "encoder"}),
        plan=plan_sha256(samples),
        images=len(samples),
        shards=sum(part.shards for part in parts),
        source=", ".join(dict.fromkeys(ledger.dataset.source for ledger in ledgers)),
        image_root=image_root,
        files=[],
        parts=parts,
    )
    writers = {plan_name(number): partial(bring, path) for number, path in enumerate(plans)}
    return begin_folder(out, dataset, writers, ledgers[0].root / WORDS, samples, reporter)


def _bring_shards(ledgers: Sequence[Ledger], merged: Ledger, reporter: Reporter) -> int:
    """Bring the shards that are missing, and return how many became hard links."""
    pairs = [(ledger, shard) for ledger in ledgers for shard in range(ledger.dataset.shards)]
    missing = merged.missing()

    def one(number: int) -> bool:
        ledger, shard = pairs[number]
        commit = ledger.read_commit(shard)
        if commit is None:
            raise UserError(f"{ledger.root}: expected its shard {shard}, which was there; found none")
        targets = [merged.shard_path(number), *([merged.quarantine_path(number)] if commit.bad else [])]
        linked = [_bring(ledger, file, target, merged) for file, target in zip(commit.files, targets, strict=True)]
        files = [
            file.model_copy(update={"path": below(merged.root, target)})
            for file, target in zip(commit.files, targets, strict=True)
        ]
        plan = merged.plan.file_of(number).sha256
        made: Commit = commit.model_copy(update={"shard": number, "plan": plan, "files": files})
        publish_bytes(merged.commit_path(number), made.to_bytes(), merged.root)
        return all(linked)

    with (
        reporter.progress("merging", len(pairs), len(pairs) - len(missing)) as advance,
        ThreadPool(HASHING) as pool,
    ):
        linked = 0
        for is_linked in prefetched_map(pool, one, missing):
            linked += is_linked
            advance(1)
    return linked


def _bring(ledger: Ledger, file: File, target: Place, merged: Ledger) -> bool:
    """Bring one file, hash it at its new place, and return whether it is a hard link."""
    source, linked = ledger.root / file.path, False
    if isinstance(source, Path) or isinstance(target, Path) or not target.copy_from(source):
        with publish(target, merged.root) as scratch:
            linked = bring(source, scratch) and isinstance(target, Path)
    found = file_record(merged.root, target)
    if (found.bytes, found.sha256) != (file.bytes, file.sha256):
        target.unlink(missing_ok=True)
        raise UserError(
            f"{source}: damaged: expected sha256 {file.sha256[:12]}…, found {found.sha256[:12]}…; restore it, or run "
            "the command that made its folder again, then merge again"
        )
    return linked

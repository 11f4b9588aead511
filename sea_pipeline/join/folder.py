"""Begin and finish a folder that is made of others, as `label` does but without reading an image."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.labels.format import KIND, MEANS, WORDS, read_mean_similarity, read_words, write_mean_similarity
from sea_pipeline.output.begin import write_beginning
from sea_pipeline.output.folder import COMMITS, DATASET
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.mend import recorded_commits, reopen_damaged_shards, restored
from sea_pipeline.output.records import DatasetFile, Manifest, load_record
from sea_pipeline.output.verify import refuse_damage
from sea_pipeline.storage.locks import locked, refuse_without_locks
from sea_pipeline.storage.paths import Place, entries, place
from sea_pipeline.storage.publish import TEMPORARY, make_folder, publish, refuse_in_place
from sea_pipeline.storage.retry import looking


@dataclass(frozen=True)
class Joined:
    """The result of making a folder of others."""

    folder: str
    images: int
    """The number of images with a row."""
    bad: int
    shards: int
    linked: int
    """The number of shards that are hard links to the old files, so that they take no space."""
    rewritten: int
    """The number of shards whose rows were written anew."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields above for machines."""
        return asdict(self)


def open_sources(folders: Sequence[str | Place]) -> list[Ledger]:
    """Open finished folders of labels, without reading their shards yet.

    Raises:
        UserError: a folder is not one of labels, is not finished, or is damaged.
    """
    ledgers = []
    for folder in folders:
        ledger = Ledger.open(place(folder))
        if ledger.dataset.kind != KIND:
            raise UserError(f"{ledger.root}: expected labels, found {ledger.dataset.kind}; only labels can be joined")
        refuse_damage(ledger)
        ledger.manifest()
        ledgers.append(ledger)
    return ledgers


def begin_folder(
    out: str | Place,
    dataset: DatasetFile,
    plans: Mapping[str, Any],
    words: Place,
    samples: Sequence[Sample],
    reporter: Reporter = SILENT,
) -> Ledger:
    """Begin the folder, or continue it if it was begun as the same one.

    Damaged files of the beginning are made again, and damaged shards are taken back.

    Args:
        out: the folder.
        dataset: the dataset that the folder is to have, without its files.
        plans: for the name of each plan file, a function that writes it to a path; the first plan comes first.
        words: the file of the word list.
        samples: the planned images in their order.
        reporter: names what is done again.

    Raises:
        UserError: the folder holds something else, or `dataset.json` is damaged.
    """
    refuse_in_place(out)
    root = place(out)
    refuse_without_locks(root)
    with looking(root):
        if root.exists() and not root.is_dir():
            raise UserError(f"--out {root}: expected a folder; found a file")
    make_folder(root)
    with locked(root) as has_lock:
        with looking(root):
            has_begun = (root / DATASET).exists()
        if has_begun:
            found = Ledger.open(root).dataset
        else:
            first, *others = plans.items()
            found = _create(root, dataset, dict([first, (WORDS, partial(bring, words)), *others]), has_lock)
        if found.model_copy(update={"files": []}) != dataset:
            raise UserError(f"{root}: holds something else than what was asked for; choose another --out")
        ledger = restored(Ledger(root, found), samples, {WORDS: words.read_bytes()})
    if any(entries(root / COMMITS)):
        reopen_damaged_shards(ledger, range(dataset.shards), reporter)
    return ledger


def _create(root: Place, dataset: DatasetFile, writers: Mapping[str, Any], has_lock: bool) -> DatasetFile:
    """Create the folder and return its dataset, or that of another process that was first."""
    there = {path.name for path in entries(root)}
    if DATASET in there:
        return load_record(root / DATASET, DatasetFile)
    strangers = sorted(there - {TEMPORARY, *writers})
    # With commits of this very dataset it is the folder itself, which has lost its dataset.json.
    if strangers and not any(recorded_commits(Ledger(root, dataset), range(dataset.shards))):
        raise UserError(f"{root}: expected an empty folder; found {strangers[0]!r} in it; choose another --out")
    return write_beginning(root, dataset, writers, has_lock) or load_record(root / DATASET, DatasetFile)


def bring(source: Place, scratch: Path) -> bool:
    """Link a file to a path of this machine if the disk allows hard links, else copy it.

    If the source is a symbolic link, as in a cache of the hub, the file that it leads to is linked or copied.

    Returns:
        Whether it is a hard link.
    """
    if not isinstance(source, Path):
        source.download(scratch)
        return False
    try:
        os.link(os.path.realpath(source), scratch)  # because Linux links a link itself
    except OSError:  # another disk, or a disk without hard links
        shutil.copyfile(source, scratch)
        return False
    return True


def finish_folder(ledger: Ledger, sources: Sequence[Ledger]) -> Manifest:
    """Write the words' mean similarities and the manifest, once every shard is done.

    Args:
        ledger: the folder.
        sources: the folders that it was made of. Its means are theirs, weighted by their images, in float64.
    """
    weights = [source.manifest().rows for source in sources]
    means = [read_mean_similarity(source.root).astype(np.float64) for source in sources]
    mean = np.average(means, axis=0, weights=weights if any(weights) else None)
    with publish(ledger.root / MEANS, ledger.root) as scratch:
        write_mean_similarity(scratch, read_words(ledger.root), mean.astype(np.float32))
    return ledger.finish([ledger.root / MEANS])

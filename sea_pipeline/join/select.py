"""Select some images of a folder of labels, by their ids, into a new folder."""

import json
from collections.abc import Collection
from pathlib import Path

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.inputs.crops import MARK, image_and_crop
from sea_pipeline.join.folder import Joined, open_sources
from sea_pipeline.join.rewrite import Chosen, rewrite
from sea_pipeline.output.row_store import NoSuchImageError
from sea_pipeline.storage.paths import Place


def select(
    folder: str | Place,
    ids: Collection[str],
    out: str | Place,
    *,
    reporter: Reporter = SILENT,
) -> Joined:
    """Make a folder of some images of another one, as `label` would have made it of these images alone.

    Rows and their order are those that `label` gives. The reasons of images that could not be read are kept, and so are
    the crops of an image whose crops are labelled. The mean similarities in `words.parquet` stay those of the whole
    folder, because they follow from embeddings, which are not kept.

    Args:
        folder: a finished folder, on this machine or as a URL.
        ids: the image ids.
        out: the new folder, or one that the same call has begun.
        reporter: shows messages and progress.

    Raises:
        UserError: an id names no planned image, or a file is damaged.
    """
    (ledger,) = open_sources([folder])
    wanted, seen = set(ids), set[str]()
    has_crops = "crops" in ledger.dataset.fields
    chosen: list[Chosen] = []
    for shard in range(ledger.dataset.shards):
        for sample in ledger.samples(shard):
            names = {sample.image_id}
            if has_crops and MARK in sample.image_id:
                names.add(image_and_crop(sample.image_id)[0])
            if found := names & wanted:
                seen |= found
                chosen.append((ledger, shard, sample))
    if unknown := sorted(wanted - seen):
        more = f" (and {len(unknown) - 1:,} more)" if len(unknown) > 1 else ""
        said = NoSuchImageError(unknown[0], [sample.image_id for sample in ledger.plan])
        raise UserError(f"{ledger.root}: {said}{more}")
    if not chosen:
        raise UserError(f"{ledger.root}: expected ids of images to select; found none")
    reporter.message(f"selecting {len(chosen):,} of {ledger.dataset.images:,} images into {out}")
    return rewrite([ledger], chosen, out, ledger.dataset.image_root, reporter)


def read_ids(path: Path) -> list[str]:
    """Read image ids from a UTF-8 file with one id per line, or from a `.json` file with an array of strings.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        text = path.read_text("utf-8-sig")
        found = json.loads(text) if path.suffix.lower() == ".json" else [line for line in text.split("\n") if line]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: expected UTF-8 text, one image id a line, or a JSON array: {one_line(error)}"
        ) from error
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UserError(f"{path}: expected a JSON array of image ids; found {found!r:.60}")
    return [one.removesuffix("\r") for one in found] if path.suffix.lower() != ".json" else found

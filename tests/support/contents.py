"""All that a folder of labels or an input holds, for comparing two of them."""

from pathlib import Path
from typing import Any

import fsspec

from sea_pipeline import LabelStore
from sea_pipeline.inputs.pixels import BadImageError
from sea_pipeline.inputs.samples import Listing
from sea_pipeline.inputs.sources import open_source


def content(folder: Path) -> dict[str, bytes]:
    """Everything a finished folder says, byte by byte, but for what tells who made it and when."""
    found = files_in(folder, "commits", "logs")
    assert found, f"{folder}: holds nothing to compare"
    return found


def files_in(folder: Path, *left_out: str) -> dict[str, bytes]:
    """Every file of a folder but for what is on its way, and what is in folders of these names."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    kept = (name for name in names if not {".tmp", *left_out} & set(name.parts))
    return {name.as_posix(): (folder / name).read_bytes() for name in kept}


def stored(url: str) -> dict[str, bytes]:
    """Every file below a folder or a URL, by name; of commits, which hold times, the names alone."""
    files, top = fsspec.core.url_to_fs(url, use_listings_cache=False)
    files.invalidate_cache()
    found = {path.removeprefix(f"{top}/"): files.cat_file(path) for path in files.find(top)}
    commits = [name for name in found if name.startswith("commits/")]
    return {name: found[name] for name in found if name not in commits} | {"commits": str(sorted(commits)).encode()}


def rows(store: LabelStore) -> dict[str, tuple[Any, ...]]:
    """What labels say, and where their images were, by image id."""
    return {name: (store[name].word_ids.tolist(), store[name].scores.tolist(), store.uri(name)) for name in store}


def read_all(listing: Listing) -> dict[str, bytes | str]:
    """What every listed image reads as, or why not."""
    source = open_source(listing.root)
    found: dict[str, bytes | str] = {}
    for sample in listing.samples:
        try:
            found[sample.image_id] = sample.problem or source.read(sample.uri)
        except BadImageError as error:
            found[sample.image_id] = error.message if error.stage == "read" else error.stage
    return found

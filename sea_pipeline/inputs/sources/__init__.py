"""List the images of an input, and read them again later.

A listing reads names, never pixels. A problem with one image's name is kept in its sample (`Sample.problem`) and costs
only that image; a problem with the whole input stops the run. Each kind of input has a file here that lists and reads.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import package_folder
from sea_pipeline.inputs.samples import Listing, Sample, Version
from sea_pipeline.inputs.sources import hub, tables, tars
from sea_pipeline.inputs.sources.base import FoundImages, Source, named, without_query
from sea_pipeline.inputs.sources.files import Files, LocalFiles, in_utf8, open_files
from sea_pipeline.inputs.sources.forms import LISTS, Input, find_input, has_query, is_pattern
from sea_pipeline.inputs.sources.hub_open import split_name
from sea_pipeline.inputs.sources.path_lists import list_paths
from sea_pipeline.storage.paths import is_url

__all__ = ["PACKAGED", "Source", "check_input", "kind_of", "list_samples", "open_source"]

PACKAGED = "packaged sample photos"
_PACKAGED_PHOTOS = {
    "skimage": (
        "data/astronaut.png data/camera.png data/chelsea.png data/clock_motion.png data/coffee.png data/coins.png "
        "data/hubble_deep_field.jpg data/motorcycle_left.png data/rocket.jpg"
    ),
    "sklearn": "datasets/images/china.jpg datasets/images/flower.jpg",
}


_OTHER_IDS = {
    "": "give --id-column a column whose values differ where images do",
    tars.PREFIX: "rename one of the tars",
}
"""What to do about images of one name, by kind of source."""


def open_source(location: str, versions: Mapping[str, Version] | None = None) -> Source:
    """Open the source that reads the images of a listing.

    Args:
        location: the listing's `root`, which `dataset.json` calls `image_root`.
        versions: the listing's; None if the files may be others by now.

    Raises:
        UserError: a package is not installed, or a dataset cannot be loaded.
    """
    kind, versions = kind_of(location), versions or {}
    if kind in (hub.PREFIX, hub.STREAM):
        return hub.HubSource(location, versions)
    files = open_files(location.removeprefix(kind))
    files.versions.update(versions)
    if kind == tars.PREFIX:
        return tars.TarSource(files)
    return tables.TableSource(files) if kind == tables.PREFIX else files


def kind_of(location: str) -> str:
    """Return the prefix of a location.

    It says whether the images lie in tars, tables or datasets, and is empty for files.
    """
    prefixes = (hub.PREFIX, hub.STREAM, tars.PREFIX, tables.PREFIX)
    return next((prefix for prefix in prefixes if location.startswith(prefix) and not is_url(location)), "")


def list_samples(
    images: str | None,
    image_root: str | Path | None = None,
    limit: int | None = None,
    *,
    id_column: str | None = None,
    streaming: bool = False,
) -> Listing:
    """List the images of an input in a stable order.

    They are sorted by id, so that neither the file system nor a shuffled JSON changes the order.

    Args:
        images: `forms.FORMS` says what it may be; None for the packaged sample photos.
        image_root: where the paths in a list of images start, a folder or a URL; by default the folder of the list.
        limit: keep only this many, the first ones.
        id_column: the column of a table that ids come from; None for the first suitable one of `base.ID_COLUMNS`.
        streaming: read an `hf:` dataset forward, in its own order.

    Raises:
        UserError: no such input, not of its format, or nothing in it.
    """
    left_out: Counter[str] = Counter()
    _refuse_contradictions(images, image_root, streaming)
    if images is None:
        name, origin, found = "samples", PACKAGED, _packaged_photos()
    elif _is_hub(images):
        text = images.removeprefix(hub.PREFIX)
        found = hub.list_hub(text, id_column, limit, left_out, streaming=streaming)
        name, origin = PurePosixPath(split_name(text)[0]).name, images
    else:
        asked = find_input(images, left_out)
        found = _found(asked, images, image_root, id_column, left_out)
        path = without_query(images) if has_query(images) else images
        name, origin = PurePosixPath(path).stem, path if is_url(images) else in_utf8(str(Path(images).absolute()))
    samples = _deduplicated(found, origin, left_out)
    if not samples:
        raise UserError(f"{origin}: expected images, found none{_described(left_out)}")
    notes = {what: count for what, count in left_out.items() if count}
    ordered = samples if streaming else sorted(samples, key=lambda sample: (sample.image_id, sample.problem or ""))
    return Listing(name, origin, found.root, ordered[:limit], notes, found.ids, streaming, found.pieces, found.versions)


def check_input(images: str | None, image_root: str | Path | None = None, *, streaming: bool = False) -> None:
    """Refuse an input of this machine that `list_samples` would refuse before it lists anything.

    Raises:
        UserError: nothing is there, or nothing of a form that is known; or the options contradict each other.
    """
    _refuse_contradictions(images, image_root, streaming)
    if images is None or _is_hub(images) or is_url(images) or os.path.isdir(images):  # noqa: PTH112
        return
    if not is_pattern(images):
        asked = find_input(images, Counter())
        if asked.suffix in LISTS:
            _image_root(image_root, asked.files)


def _refuse_contradictions(images: str | None, image_root: str | Path | None, streaming: bool) -> None:
    if streaming and not _is_hub(images):
        raise UserError("--streaming: goes with --images hf:NAME")
    if image_root is not None and (images is None or _is_hub(images)):
        raise UserError(f"--image-root {image_root}: goes with a list of images")


def _found(
    asked: Input, images: str, image_root: str | Path | None, id_column: str | None, left_out: Counter[str]
) -> FoundImages:
    files, names = asked.files, asked.names
    listed = [named(name, name, "file") for name in names]
    written = [sample.uri for sample in listed if not sample.problem]
    if asked.suffix == ".parquet" and (len(names) > 1 or tables.is_table_of_images(files, names[0])):
        found = tables.list_tables(files, written, id_column, left_out)
    elif asked.suffix == ".tar":
        found = tars.list_tars(files, written, left_out)
    elif not asked.suffix:
        found = FoundImages(files.root, listed)
    else:
        return list_paths(files, names[0], _image_root(image_root, files), id_column, left_out)
    if asked.suffix:
        found.samples.extend(sample for sample in listed if sample.problem)
    if image_root is not None:
        kind = "a folder" if asked.is_folder else "no list of images"
        raise UserError(f"--image-root goes with a list of images; --images {images} is {kind}")
    if id_column is not None and asked.suffix != ".parquet":
        raise UserError(f"--id-column {id_column}: goes with tables; --images {images} is none")
    return found


def _image_root(image_root: str | Path | None, files: Files) -> Files:
    if image_root is None:
        return files
    root = open_files(str(image_root))
    if isinstance(root, LocalFiles) and not root.is_there():
        raise UserError(f"--image-root {root.root}: expected a folder; found none there")
    return root


def _is_hub(images: str | None) -> bool:
    return images is not None and images.startswith(hub.PREFIX) and not is_url(images)


def _deduplicated(found: FoundImages, origin: str, left_out: Counter[str]) -> list[Sample]:
    """Keep the first sample of each id.

    Raises:
        UserError: an id is that of two files.
    """
    # Several rows of a table may hold the same image, so equal ids do not show that images differ.
    in_rows = kind_of(found.root) in (hub.PREFIX, hub.STREAM, tables.PREFIX)
    # An escaped name may equal another image's real name. So the problem is part of the key, and a sample with a
    # problem never replaces a good one.
    by_id: dict[tuple[str, str], Sample] = {}
    for sample in found.samples:
        first = by_id.setdefault((sample.image_id, sample.problem or ""), sample)
        if first is sample:
            continue
        if first.uri != sample.uri and not sample.problem and not in_rows:
            raise UserError(
                f"{origin}: expected a name of its own for every image; found {sample.image_id!r:.80} for "
                f"{first.uri!r:.80} and {sample.uri!r:.80}; {_OTHER_IDS[kind_of(found.root)]}"
            )
        left_out["rows whose id an earlier row has" if in_rows else "repeated entries of an image"] += 1
    return list(by_id.values())


def _described(left_out: Counter[str]) -> str:
    parts = [f"{what}: {count:,}" for what, count in left_out.items() if count]
    return f" (left out: {'; '.join(parts)})" if parts else ""


def _packaged_photos() -> FoundImages:
    photos: dict[str, Path] = {}
    for package, names in _PACKAGED_PHOTOS.items():
        folder = package_folder(package, "demo")
        photos.update({Path(name).name: folder / name for name in names.split()})
    root = Path(os.path.commonpath(photos.values()))
    return FoundImages(str(root), [Sample(name, path.relative_to(root).as_posix()) for name, path in photos.items()])

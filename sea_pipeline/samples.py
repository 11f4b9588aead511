"""Where images come from: a folder, LLaVA's JSON or JSONL, or the photos that two packages ship.

A listing reads names only, never pixels. What is wrong with one image's name is kept beside it (`Sample.problem`)
and costs that image; what is wrong with the whole input stops the run.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sea_pipeline import llava_json
from sea_pipeline.errors import UserError
from sea_pipeline.optional import package_folder

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"}
    | {".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""File names that a folder listing takes for images; what they really are is seen when they are read."""

PACKAGED = "packaged sample photos"
_PACKAGED_PHOTOS = {
    "skimage": (
        "data/astronaut.png data/camera.png data/chelsea.png data/clock_motion.png data/coffee.png data/coins.png "
        "data/hubble_deep_field.jpg data/motorcycle_left.png data/rocket.jpg"
    ),
    "sklearn": "datasets/images/china.jpg datasets/images/flower.jpg",
}


class Sample(NamedTuple):
    """One image, not yet read.

    `image_id` is what training data calls it: the LLaVA `image` field, or the path relative to the folder. `uri` is
    where it is, relative to the image root. `problem` says why it cannot be read, as far as its name tells.
    """

    image_id: str
    uri: str
    problem: str | None = None


class BadSample(NamedTuple):
    """An image that cannot be used, where it failed (list, read, decode, encode) and why."""

    sample: Sample
    stage: str
    error: str
    message: str
    image_sha256: bytes | None = None


@dataclass
class Listing:
    """All images of an input, sorted by id, each id once, and what was left out."""

    name: str
    origin: str
    root: Path
    samples: list[Sample]
    notes: dict[str, int] = field(default_factory=dict)
    """What was left out or folded together, and how often; for people."""


def list_samples(images: str | None, image_root: Path | None = None, limit: int | None = None) -> Listing:
    """Lists an input in a stable order: sorted by id, so that neither a file system nor a shuffled JSON changes it.

    Args:
        images: a folder, a LLaVA `.json` or `.jsonl` file, or None for the packaged sample photos.
        image_root: where the paths in a JSON file start; by default the folder of that file.
        limit: keep the first so many.

    Raises:
        UserError: no such input, not LLaVA's format, or nothing in it.
    """
    left_out: Counter[str] = Counter()
    if images is None:
        name, origin, root, found = "samples", PACKAGED, *_packaged_photos()
    else:
        path = Path(images)
        if not path.exists():
            raise UserError(f"--images {images}: expected a folder, a .json or a .jsonl file; found nothing there")
        if path.is_dir():
            if image_root is not None:
                raise UserError(f"--image-root goes with a JSON file; --images {images} is a folder")
            root, found = path.absolute(), _walk(path, left_out)
        elif path.suffix.lower() in (".json", ".jsonl"):
            root = (image_root or path.parent).absolute()
            if not root.is_dir():
                raise UserError(f"--image-root {root}: expected a folder; found none there")
            found = (_llava_sample(image) for image in _llava_images(path, left_out))
        else:
            raise UserError(f"--images {images}: expected a folder, a .json or a .jsonl file; found another file")
        name, origin = path.absolute().stem, str(path.absolute())
    samples = _sorted_once(found, left_out)
    if not samples:
        raise UserError(f"{origin}: expected images, found none{_described(left_out)}")
    return Listing(name, origin, root, samples[:limit], {what: n for what, n in left_out.items() if n})


def _sorted_once(found: Iterable[Sample], left_out: Counter[str]) -> list[Sample]:
    # Escaped names and names as they are may spell the same id: a problem never takes a good image's place.
    by_id: dict[tuple[str, str], Sample] = {}
    total = 0
    for sample in found:
        total += 1
        by_id.setdefault((sample.image_id, sample.problem or ""), sample)
    left_out["repeated entries of an image"] = total - len(by_id)
    return [by_id[key] for key in sorted(by_id)]


def _described(left_out: Counter[str]) -> str:
    parts = [f"{what}: {count:,}" for what, count in left_out.items() if count]
    return f" (left out: {'; '.join(parts)})" if parts else ""


def _packaged_photos() -> tuple[Path, Iterator[Sample]]:
    photos: dict[str, Path] = {}
    for package, names in _PACKAGED_PHOTOS.items():
        folder = package_folder(package, "demo")
        photos.update({Path(name).name: folder / name for name in names.split()})
    root = Path(os.path.commonpath(photos.values()))
    return root, (Sample(name, path.relative_to(root).as_posix()) for name, path in photos.items())


def _walk(folder: Path, left_out: Counter[str]) -> Iterator[Sample]:
    """Every image below a folder; links to folders are followed unless they lead back to where we came from."""
    top = os.fsencode(folder)
    stack: list[tuple[bytes, tuple[tuple[int, int], ...]]] = [(b"", ())]
    while stack:
        inner, trail = stack.pop()
        here = os.path.join(top, inner)  # noqa: PTH118 - bytes: names need not be UTF-8
        try:
            status = os.stat(here)  # noqa: PTH116
            entries = list(os.scandir(here))
        except OSError as error:
            if not inner:
                raise UserError(f"--images {folder}: cannot be listed: {error.strerror}") from error
            left_out["folders that cannot be listed"] += 1
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in trail:
            left_out["links that lead back to a folder above them"] += 1
            continue
        for entry in entries:
            name = os.path.join(inner, entry.name)  # noqa: PTH118
            if _is_folder(entry):
                stack.append((name, (*trail, identity)))
            elif os.path.splitext(entry.name)[1].lower().decode("latin1") in IMAGE_SUFFIXES:  # noqa: PTH122
                yield _folder_sample(name)
            else:
                left_out["files without an image's suffix"] += 1


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def _folder_sample(name: bytes) -> Sample:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        escaped = name.decode("utf-8", "backslashreplace")
        return Sample(escaped, escaped, "the file name is not UTF-8; rename the file")
    return Sample(text, text)


def _llava_images(path: Path, left_out: Counter[str]) -> Iterator[Any]:
    """The `image` entries of a LLaVA file, one at a time."""
    for _, row in llava_json.records(path):
        images = llava_json.images_of(row)
        if not images:
            left_out["text-only entries"] += 1
        yield from images


def _llava_sample(image: Any) -> Sample:  # noqa: ANN401 - whatever a data file holds
    try:
        return Sample(image, llava_json.relative_path(image))
    except ValueError as problem:
        is_text = isinstance(image, str) and image and "\0" not in image
        shown = image.encode("utf-8", "backslashreplace").decode("utf-8") if is_text else repr(image)
        return Sample(shown, shown, str(problem))

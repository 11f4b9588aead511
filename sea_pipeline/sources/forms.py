"""What `--images` says: a folder, a file, or several, here or at a URL."""

import glob
import itertools
import posixpath
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from sea_pipeline.errors import UserError
from sea_pipeline.sources.base import OTHER_FILES, is_image_name
from sea_pipeline.sources.files import Files, LocalFiles, in_utf8, open_files
from sea_pipeline.storage import is_url

FORMS = (
    "a folder, a .json, .jsonl, .csv, .tsv, .txt, .parquet or .tar file, several .parquet or .tar files (*, "
    "{000..009}), a URL of one of these, or hf:NAME[:SPLIT]"
)
_SUFFIXES = {".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".tar"}
_SEVERAL = {".parquet", ".tar"}


class Input(NamedTuple):
    """Files below a root: images (an empty suffix), or files that hold or name images, all of one suffix."""

    files: Files
    names: list[str]
    suffix: str
    is_folder: bool


def find_input(images: str, left_out: Counter[str]) -> Input:
    """The files that `--images` means.

    Raises:
        UserError: nothing is there, or nothing that is an input.
    """
    for local in ("file://", "local://"):
        images = images.removeprefix(local)
    if not is_url(images):
        path = Path(images)
        if path.is_dir():
            return _folder(LocalFiles(path), images, left_out)
        if path.exists():
            return _several(LocalFiles(path.parent), [in_utf8(path.name)], images)
    elif not _is_pattern(images) and _suffix(images) not in _SUFFIXES:
        return _folder(open_files(images), images, left_out)
    if _is_pattern(images):
        return _matching(images)
    if not is_url(images):
        raise UserError(f"--images {images}: expected {FORMS}; found nothing there")
    root = _parent(images)
    return _several(open_files(root), [images[len(root) :].lstrip("/")], images)


def _folder(files: Files, images: str, left_out: Counter[str]) -> Input:
    """A folder of images or, without any, of tars or Parquet files."""
    names: list[str] = []
    several: dict[str, list[str]] = {suffix: [] for suffix in sorted(_SEVERAL)}
    others = 0
    for name in files.names(left_out):
        if is_image_name(name):
            names.append(name)
        else:
            several.get(_suffix(name), []).append(name)
            others += 1
    held = {suffix: found for suffix, found in several.items() if found and not names}
    if len(held) > 1:
        raise UserError(f"--images {images}: holds .parquet and .tar files; give one kind, such as {images}/*.tar")
    for suffix, found in held.items():
        left_out[OTHER_FILES] += others - len(found)
        return Input(files, sorted(found), suffix, is_folder=True)
    left_out[OTHER_FILES] += others
    return Input(files, names, "", is_folder=True)


def _matching(images: str) -> Input:
    fixed = re.split(r"[*?\[{]", images, maxsplit=1)[0]
    root = _parent(fixed)
    pattern = images[len(root) :].lstrip("/")
    files = open_files(root or ("/" if images.startswith("/") else "."))
    names: list[str] = []
    for name in _expanded(pattern):
        found = files.matching(name if glob.has_magic(name) else glob.escape(name))
        if not found:
            raise UserError(f"--images {images}: expected files; found none called {name}")
        names += found
    return _several(files, sorted(set(names)), images)


def _several(files: Files, names: list[str], images: str) -> Input:
    suffixes = {_suffix(name) for name in names}
    suffix = min(suffixes)
    if len(suffixes) > 1 or suffix not in _SUFFIXES or (len(names) > 1 and suffix not in _SEVERAL):
        folder = "; give the folder that images lie in, or a list of them" if is_image_name(names[0]) else ""
        raise UserError(f"--images {images}: expected {FORMS}; found {', '.join(names[:3])}{folder}")
    return Input(files, names, suffix, is_folder=False)


def _expanded(pattern: str) -> list[str]:
    """The patterns that braces mean: `{000..009}`, `{train,val}`; the numbers keep their zeros."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[piece] if place % 2 == 0 else _choices(piece) for place, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inner: str) -> list[str]:
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = numbers.groups()
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return inner.split(",")


def _parent(images: str) -> str:
    parent = images.rpartition("/")[0]
    return f"{parent}/" if parent.endswith(":/") else parent


def _is_pattern(images: str) -> bool:
    return re.search(r"[*?\[]|\{[^{}]*(\.\.|,)[^{}]*\}", images) is not None


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()

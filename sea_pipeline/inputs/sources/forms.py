"""Find the files that `--images` means: a folder, a file, or several, on this machine or at a URL."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import NamedTuple
from urllib.parse import unquote

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.sources.base import is_image_name, left_as, suffix_of, without_query
from sea_pipeline.inputs.sources.files import Files, LocalFiles, in_utf8, open_files
from sea_pipeline.storage.http_parts import is_http
from sea_pipeline.storage.leftovers import LEFTOVERS, is_leftover
from sea_pipeline.storage.paths import is_url, without_local

FORMS = (
    "a folder, a .json, .jsonl, .csv, .tsv, .txt, .parquet or .tar file, several .parquet or .tar files (*, "
    "{000..009}), a URL of one of these, or hf:NAME[[:CONFIG]:SPLIT]"
)
LISTS = {".json", ".jsonl", ".csv", ".tsv", ".txt"}
"""Suffixes of files that name images; a .parquet file, which is not here, names them or holds them."""
_SEVERAL = {".parquet", ".tar"}
_SUFFIXES = LISTS | _SEVERAL
_TAR_ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_COMPRESSED = "compressed tars, which are not read"
_BRACES = re.compile(r"\{([^{}]*(?:\.\.|,)[^{}]*)\}")
_MOST_NAMES = 1_000_000


class Input(NamedTuple):
    """Files below a root: images (with an empty suffix), or files of one suffix that hold or name images."""

    files: Files
    names: list[str]
    suffix: str
    is_folder: bool


def find_input(images: str, left_out: Counter[str]) -> Input:
    """Find the files that `--images` means.

    Raises:
        UserError: nothing is there, or nothing that is an input.
    """
    images = without_local(images)
    if not is_url(images):
        path = Path(images)
        if os.path.isdir(path):  # noqa: PTH112 - Path raises on a pattern that is longer than a name may be
            return _folder(LocalFiles(path), images, left_out)
        if os.path.exists(path):  # noqa: PTH110
            return _several(LocalFiles(path.parent), [in_utf8(path.name)], images)
    outermost, rest = _unchained(images)
    if is_url(images) and not is_pattern(images) and suffix_of(outermost) not in _SUFFIXES:
        return _folder(open_files(images), images, left_out)
    if is_pattern(images):
        return _matching(images, left_out)
    if not is_url(images):
        raise UserError(f"--images {images}: expected {FORMS}; found nothing there")
    root = _parent(without_query(outermost))
    name = outermost.partition("#")[0] if has_query(images) else _behind(root, outermost)
    return _several(open_files(f"{root}{rest}"), [name], images)


def _folder(files: Files, images: str, left_out: Counter[str]) -> Input:
    """List a folder of images or, if it has none, of tars or Parquet files."""
    names: list[str] = []
    several: dict[str, list[str]] = {suffix: [] for suffix in sorted(_SEVERAL)}
    for name in files.names(left_out):
        if is_leftover(name):
            left_out[LEFTOVERS] += 1
        elif is_image_name(name):
            names.append(name)
        elif (suffix := suffix_of(name)) in several:
            several[suffix].append(name)
        else:
            left_out[_COMPRESSED if name.lower().endswith(_TAR_ARCHIVES) else left_as(name)] += 1
    held = {suffix: sorted(found) for suffix, found in several.items() if found}
    if names:
        # They may be what the images were unpacked from, or more images.
        left_out.update({f"{suffix} files, not read beside images": len(found) for suffix, found in held.items()})
        return Input(files, names, "", is_folder=True)
    if len(held) > 1:
        outermost, rest = _unchained(images)
        example = f"{outermost}{'' if outermost.endswith('/') else '/'}*.tar{rest}"
        raise UserError(f"--images {images}: holds .parquet and .tar files; give one kind, such as {quote(example)}")
    suffix = next(iter(held), "")
    return Input(files, held.get(suffix, []), suffix, is_folder=True)


def _matching(images: str, left_out: Counter[str]) -> Input:
    outermost, rest = _unchained(images)
    root = _parent(re.split(r"[*?\[{]", outermost, maxsplit=1)[0])
    pattern = _behind(root, outermost)
    files = open_files(f"{root}{rest}" or ("/" if images.startswith("/") else "."))
    names: set[str] = set()
    for name in _expanded(pattern, images):
        found = files.matching(name if glob.has_magic(name) else glob.escape(name))
        wanted = [match for match in found if match == name or not is_leftover(match)]
        if not wanted:
            raise UserError(f"--images {images}: expected files; found none called {name}")
        left_out[LEFTOVERS] += len(found) - len(wanted)
        names.update(wanted)
    return _several(files, sorted(names), images)


def _several(files: Files, names: list[str], images: str) -> Input:
    suffixes = {suffix_of(name) for name in names}
    suffix = min(suffixes)
    if len(suffixes) > 1 or suffix not in _SUFFIXES or (len(names) > 1 and suffix not in _SEVERAL):
        folder = "; give the folder that images lie in, or a list of them" if is_image_name(names[0]) else ""
        raise UserError(f"--images {images}: expected {FORMS}; found {', '.join(names[:3])}{folder}")
    return Input(files, names, suffix, is_folder=False)


def _expanded(pattern: str, images: str) -> list[str]:
    """Expand the braces of a pattern as a shell does, `{000..009}` or `{train,val}`, also nested ones."""
    ahead, done = [pattern], []
    while ahead:
        piece = ahead.pop()
        if braces := _BRACES.search(piece):
            before, after = piece[: braces.start()], piece[braces.end() :]
            ahead += [f"{before}{choice}{after}" for choice in _choices(braces[1], images)]
        else:
            done.append(piece)
        if len(ahead) + len(done) > _MOST_NAMES:
            raise UserError(f"--images {images}: means more than {_MOST_NAMES:,} files; give a * or a folder")
    return sorted(done)


def _choices(inner: str, images: str) -> Iterable[str]:
    if "," in inner:
        return inner.split(",")
    if not (numbers := re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", inner)):
        raise UserError(f"--images {images}: expected a range of numbers, such as {{000..009}}; found {{{inner}}}")
    ends = numbers.groups()
    first, last = sorted(map(int, ends))
    if last - first >= _MOST_NAMES:
        raise UserError(f"--images {images}: means more than {_MOST_NAMES:,} files; give a * or a folder")
    width = max(map(len, ends)) if any(len(end) > 1 and end.startswith("0") for end in ends) else 0
    return (f"{number:0{width}d}" for number in range(first, last + 1))


def _parent(images: str) -> str:
    parent = images.rpartition("/")[0]
    return f"{parent}/" if parent.endswith(":/") else parent


def _behind(root: str, images: str) -> str:
    """Return the name below a root. A web server's URL may be quoted, and names are not."""
    name = images[len(root) :].lstrip("/")
    return unquote(name) if is_http(images) else name


def is_pattern(images: str) -> bool:
    """Tell whether a text is a pattern of names, with `*` or `{000..009}`."""
    outermost, _ = _unchained(images)
    return not has_query(images) and (
        re.search(r"[*?\[]", outermost) is not None or _BRACES.search(outermost) is not None
    )


def has_query(images: str) -> bool:
    """Tell whether a `?` begins the query of a web server's file, and stands for no character of its name."""
    path = without_query(images)
    return is_http(images) and path != images and suffix_of(path) in _SUFFIXES and not is_pattern(path)


def _unchained(images: str) -> tuple[str, str]:
    """Split a chain of URLs, `zip://in/x.csv::y.zip`, behind the first one that has a path of its own."""
    if not is_url(images):
        return images, ""
    end = images.find("::", images.index("://"))
    return (images, "") if end < 0 else (images[:end], images[end:])

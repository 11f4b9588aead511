"""Files that are either whole or absent, on this machine or in a store elsewhere, and the hashes that name them."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import platformdirs

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.disk import sync
from sea_pipeline.storage.leftovers import is_leftover
from sea_pipeline.storage.locks import alone as alone
from sea_pipeline.storage.locks import claimed as claimed
from sea_pipeline.storage.locks import refuse_without_locks as refuse_without_locks
from sea_pipeline.storage.scratch import is_abandoned, scratch_beside, scratch_name

if TYPE_CHECKING:
    from sea_pipeline.storage.remote import RemotePath

    Place = Path | RemotePath
else:
    Place = Path
"""A file or a folder, of this machine or of a store; `place` makes one from what a user gives."""

TEMPORARY = ".tmp"
"""Folder inside every output folder: a rename is atomic only within one file system."""

_URL = re.compile(r"[A-Za-z][\w+.-]*(::[A-Za-z][\w+.-]*)*://")
_REQUESTS = 16
"""At once, where each one waits for a network."""
_CANNOT_WRITE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the disk quota or free some space",
    errno.EFBIG: "raise the file size limit",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
    errno.ENOTDIR: "choose another folder",
    errno.EEXIST: "choose another folder",
    errno.ENOTEMPTY: "choose another folder",
    errno.EBUSY: "choose another folder",
    errno.EXDEV: "choose another folder",
}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def is_url(text: str) -> bool:
    """Whether fsspec is asked for, and not a file of this machine: `PROTOCOL://…`, or `CACHE::PROTOCOL://…`."""
    return _URL.match(text) is not None


def place(text: str | Place) -> Place:
    """What a user calls a file or a folder: a path of this machine, or the URL of one that fsspec can write.

    Raises:
        UserError: the URL's protocol is unknown, or needs a package that is not installed.
    """
    if not isinstance(text, str):
        return text
    for local in ("file://", "local://"):
        text = text.removeprefix(local)
    if not is_url(text):
        return Path(text)
    from sea_pipeline.storage.remote import remote_path

    return remote_path(text)


@contextmanager
def writing(path: Place, root: Path | None = None, *, in_parts: bool = True) -> Iterator[None]:
    """Turns a full disk, a read-only disk or missing rights into a `UserError` that names `path`.

    With `root`, errors that name a file outside it pass: they are not the output's. `in_parts`: what was written before
    stays.
    """
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | Path) else None
        outside = root is not None and named is not None and not named.resolve().is_relative_to(root.resolve())
        if error.errno not in _CANNOT_WRITE or outside:
            raise
        raise UserError(
            f"{path}: cannot be written: {os.strerror(error.errno)}; {_CANNOT_WRITE[error.errno]} and run the "
            f"same command again{' (what is finished is kept)' if in_parts else ''}"
        ) from error


def cache_folder() -> Path:
    """Where computed files are kept between runs: `$SEA_PIPELINE_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("SEA_PIPELINE_CACHE") or platformdirs.user_cache_dir("sea-pipeline"))


def data_folder(name: str) -> Path:
    """A folder of files that come with this package: inside the wheel, or at the top of a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "data" / name
    return inside if inside.is_dir() else package.parent / name


def make_folder(path: Place) -> None:
    """Creates a folder and its parents; a `UserError` where that is not possible. Stores elsewhere need none."""
    if isinstance(path, Path):
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)


def entries(folder: Place) -> list[Place]:
    """What lies in a folder, by name, but for what systems leave behind; nothing if it is absent."""
    with suppress(FileNotFoundError):
        return sorted((one for one in folder.iterdir() if not is_leftover(one.name)), key=lambda entry: entry.name)
    return []


def below(root: Place, path: Place) -> str:
    """The way from a folder to a path inside it, with slashes."""
    return path.relative_to(root).as_posix()  # type: ignore[arg-type]  # both of this machine, or both of one store


@contextmanager
def publish(path: Place, root: Place, *, exclusive: bool = False, scratch: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path of this machine; on success its file appears at `path` below `root`, whole.

    After an exception or a kill nothing has appeared at `path`, and what stood there before still stands. On this
    machine the file is on disk, then renamed; in a store elsewhere it is one request, and whoever is last wins. With
    `exclusive` it is whoever is first, and `FileExistsError` for the others. `scratch` is for who has a temporary path.
    """
    scratch = scratch or scratch_path(root, path.name)
    make_folder(scratch.parent)
    make_folder(path.parent)
    with writing(path, root if isinstance(root, Path) else scratch.parent):
        try:
            yield scratch
            if isinstance(path, Path):
                sync(scratch)
                _appear(scratch, path, exclusive=exclusive)
                sync(path.parent)
            else:
                path.upload(scratch, exclusive=exclusive)
        finally:
            scratch.unlink(missing_ok=True)


def publish_bytes(path: Place, data: bytes, root: Place, *, exclusive: bool = False) -> None:
    """Writes a small file, whole or not at all; see `publish`."""
    with publish(path, root, exclusive=exclusive) as scratch:
        scratch.write_bytes(data)


@contextmanager
def local_copy(path: Place) -> Iterator[Path]:
    """A file on this machine with the bytes of `path`: that itself, or a copy for the time of this block."""
    if isinstance(path, Path):
        yield path
        return
    scratch = scratch_path(path, path.name)
    make_folder(scratch.parent)
    try:
        with writing(scratch):
            path.download(scratch)
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`, which becomes `path` on success: until then that is absent or empty.

    What systems leave behind does not count, and goes along. After an exception or a kill nothing has appeared at
    `path`. What a killed process left beside it goes when the next one of this machine begins.

    Raises:
        UserError: `path` holds something, or cannot be written.
    """
    if path.exists() and (not path.is_dir() or entries(path)):
        raise UserError(f"{path}: expected a new or an empty folder; choose another with --out, or remove this one")
    make_folder(path.parent)
    scratch = scratch_beside(path)
    try:
        with writing(path, scratch, in_parts=False):
            scratch.mkdir()
            yield scratch
            with writing(path, in_parts=False):
                for left in [one for one in path.glob("*") if is_leftover(one.name)]:  # only an empty folder gives way
                    left.replace(scratch / left.name)
            scratch.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sweep(root: Place) -> None:
    """Removes what killed processes of this machine left in the temporary folder."""
    for leftover in _scratch_folder(root).glob("*"):
        if is_abandoned(leftover):
            with suppress(OSError):
                leftover.unlink()


def spread(root: Place, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """The results of `work` in the order of `items`; several at once where `root` is in a store elsewhere."""
    if isinstance(root, Path):
        yield from map(work, items)
        return
    with ThreadPoolExecutor(_REQUESTS) as pool:
        yield from pool.map(work, items)


def file_sha256(path: Place) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with local_copy(path) as copy, copy.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - whatever JSON holds
    """The one spelling of a JSON value that is hashed: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def scratch_path(root: Place, name: str) -> Path:
    """A path of this machine for an unfinished file of `root`, this process's own; `sweep` removes it after a kill."""
    return _scratch_folder(root) / scratch_name(name)


def _scratch_folder(root: Place) -> Path:
    return (root if isinstance(root, Path) else cache_folder()) / TEMPORARY


def _appear(scratch: Path, path: Path, *, exclusive: bool) -> None:
    """One step: a rename, or where `exclusive` a link, which of two machines on one file system only one gets."""
    if exclusive:
        try:
            path.hardlink_to(scratch)
            return
        except FileExistsError:
            raise FileExistsError(path) from None
        except OSError:  # a file system without links
            if path.exists():
                raise FileExistsError(path) from None
    scratch.replace(path)

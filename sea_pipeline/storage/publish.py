"""Files and folders that are whole or absent, and on disk before they appear."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.leftovers import is_leftover
from sea_pipeline.storage.paths import Place, cache_folder, entries
from sea_pipeline.storage.scratch import is_abandoned, scratch_beside, scratch_name

TEMPORARY = ".tmp"
"""Folder inside every output folder: a rename is atomic only within one file system."""
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


def make_folder(path: Place) -> None:
    """Creates a folder and its parents; a `UserError` where that is not possible. Stores elsewhere need none."""
    if isinstance(path, Path):
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)


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
    check_new_folder(path)
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


def check_new_folder(path: Path) -> None:
    """Refuses a place where something lies already; what systems leave behind does not count.

    Raises:
        UserError: there is a file, or a folder that holds something.
    """
    if path.exists() and (not path.is_dir() or entries(path)):
        raise UserError(f"{path}: expected a new or an empty folder; choose another with --out, or remove this one")


def sweep(root: Place) -> None:
    """Removes what killed processes of this machine left in the temporary folder."""
    for leftover in _scratch_folder(root).glob("*"):
        if is_abandoned(leftover):
            with suppress(OSError):
                leftover.unlink()


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


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on disk."""
    if os.name != "posix":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Waits until a folder and all that is below it are on disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def check_result(out: Path) -> None:
    """Before any work is done: whether a file can be written there; its folder is made.

    Raises:
        UserError: it cannot, or a folder has that name.
    """
    if out.is_dir():
        raise UserError(f"--out {out}: expected a file to write; found a folder; name a file in it")
    make_folder(out.parent)
    scratch = scratch_beside(out)
    with writing(out, in_parts=False):
        scratch.touch()
        scratch.unlink()


@contextmanager
def publish_result(out: Path) -> Iterator[Path]:
    """Yields a temporary path; on success its file appears at `out`, whole. See `publish`."""
    with publish(out, out.parent, scratch=scratch_beside(out)) as scratch:
        yield scratch

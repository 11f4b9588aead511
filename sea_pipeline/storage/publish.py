"""Write files and folders that appear whole or not at all, and are on disk before they appear."""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sea_pipeline.core.errors import UserError, blamed_file
from sea_pipeline.storage.leftovers import is_leftover
from sea_pipeline.storage.paths import Place, cache_folder, entries, followed, is_url, lies_in
from sea_pipeline.storage.retry import StoreError
from sea_pipeline.storage.scratch import is_abandoned, scratch_beside, scratch_name, scratch_pattern

TEMPORARY = ".tmp"
"""Folder inside every output folder for unfinished files, because a rename is atomic only within one file system."""
_CANNOT_WRITE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the disk quota or free some space",
    errno.EFBIG: "raise the file size limit",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that can be written"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.ELOOP, errno.EXDEV), "choose another folder"
    ),
}
"""What to do about each error for which the place is at fault, by its `errno`."""
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that no reading raises, so that the output is at fault though no file is named."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""What Rust writes of an error, such as hf_xet and safetensors."""
_PROTOCOL = re.compile(r"[a-z][\w+.-]*(?=://)")
_IN_PLACE = {"ftp", "http", "https", "sftp", "smb", "ssh", "webdav", "webdav+http", "webdav+https"}
"""Protocols of stores that show a file while it is being written, or that write none."""


@contextmanager
def writing(path: Place, root: Path | None = None, *, in_parts: bool = True) -> Iterator[None]:
    """Turn a full disk, a read-only disk or missing rights into a `UserError` that names `path`.

    Args:
        path: what the block writes.
        root: if given, errors that name a file outside this folder pass unchanged, because they are not the output's.
        in_parts: what was written before the error stays, and the message says so.
    """
    try:
        yield
    except Exception as raised:
        error = os_error_of(raised)
        if error is None or (error is not raised and error.errno not in _OF_WRITING):
            raise
        named = blamed_file(error)
        outside = root is not None and named is not None and not lies_in(named, root)
        if error.errno not in _CANNOT_WRITE or outside:
            raise
        raise UserError(
            f"{path}: cannot be written: {os.strerror(error.errno)}; {_advice(path, error.errno)} and run the "
            f"same command again{' (what is finished is kept)' if in_parts else ''}"
        ) from raised


def _advice(path: Place, code: int) -> str:
    advice = _CANNOT_WRITE[code]
    if advice.startswith("choose") and isinstance(path, Path):
        with suppress(UserError):  # there is no cache folder
            if path.absolute().is_relative_to(cache_folder().absolute()):
                return "set SEA_PIPELINE_CACHE to a folder that can be written"  # no option names the cache
    return advice


def os_error_of(error: BaseException) -> OSError | None:
    """Return the error of the operating system that an error is, or that a library in Rust tells of in its text."""
    if isinstance(error, OSError):
        return error
    found = _OS_ERROR.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def make_folder(path: Place) -> None:
    """Create a folder and its parents.

    A link that leads to nothing is followed. Stores elsewhere need no folders.

    Raises:
        UserError: it cannot be created.
    """
    if isinstance(path, Path):
        with writing(path):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except FileExistsError:  # a link or a file
                Path(os.path.realpath(path)).mkdir(parents=True, exist_ok=True)


def refuse_in_place(folder: str | Place) -> None:
    """Refuse to write into a store that shows half a file after a kill, before it is connected to.

    Raises:
        UserError: the folder is in such a store, or its URL holds a password.
    """
    found = _PROTOCOL.findall(str(folder).lower()) if is_url(str(folder)) else []
    if named := next((protocol for protocol in found if protocol in _IN_PLACE), None):
        from sea_pipeline.storage.remote import refuse_password

        refuse_password(str(folder))
        raise UserError(
            f"{folder}: expected a folder of this machine, or of a store that writes whole files, such as s3://; found "
            f"{named}://; choose a local folder, and copy it there when it is finished"
        )


@contextmanager
def publish(
    path: Place, root: Place, *, exclusive: bool = False, scratch: Path | None = None, in_parts: bool = True
) -> Iterator[Path]:
    """Yield a temporary path of this machine whose file appears at `path` on success, whole.

    After an exception or a kill nothing new has appeared at `path`, and an older file there is unchanged. On this
    machine the file is synced to disk and then renamed. In a store elsewhere it is written in one request. If several
    processes write, the last one wins; with `exclusive` the first one wins, and the others get `FileExistsError`.

    Args:
        path: where the file appears.
        root: the output folder that holds it, and the temporary folder.
        exclusive: fail if the file exists.
        scratch: the temporary path to use; None creates one.
        in_parts: see `writing`.
    """
    scratch = scratch or scratch_path(root, path.name)
    make_folder(scratch.parent)
    make_folder(path.parent)
    with writing(path, root if isinstance(root, Path) else scratch.parent, in_parts=in_parts):
        try:
            yield scratch
            if isinstance(path, Path):
                sync(scratch)
                _put_in_place(scratch, path, exclusive=exclusive)
                sync(path.parent)
            else:
                path.upload(scratch, exclusive=exclusive)
        finally:
            scratch.unlink(missing_ok=True)


def publish_bytes(path: Place, data: bytes, root: Place, *, exclusive: bool = False) -> None:
    """Write a small file, whole or not at all.

    See `publish`.
    """
    with publish(path, root, exclusive=exclusive) as scratch:
        scratch.write_bytes(data)


@contextmanager
def local_copy(path: Place) -> Iterator[Path]:
    """Yield a file on this machine that has the bytes of `path`.

    It is `path` itself if that is on this machine, else a copy that exists inside this block.

    Raises:
        StoreError: the copy cannot be made, also because the disk of this machine is full; the file is not at fault.
    """
    if isinstance(path, Path):
        yield path
        return
    scratch = scratch_path(path, path.name)
    make_folder(scratch.parent)
    try:
        try:
            with writing(scratch):
                path.download(scratch)
        except StoreError:
            raise
        except UserError as error:
            raise StoreError(str(error)) from error
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder next to `path` that becomes `path` on success.

    Until then `path` is absent or empty; leftovers of systems do not count, and move into the new folder. The folder is
    synced to disk before it appears. After an exception or a kill nothing has appeared at `path`. The next process of
    this machine that writes here removes what a killed one left. If `path` is a link, the folder that it leads to
    appears.

    Raises:
        UserError: `path` holds something, or cannot be written.
    """
    check_new_folder(path)
    real = followed(path)
    make_folder(real.parent)
    scratch = scratch_beside(real)
    try:
        with writing(path, scratch, in_parts=False):
            scratch.mkdir()
            yield scratch
            sync_folder(scratch)
            with writing(path, in_parts=False):
                replace_folder(real, scratch)
            sync(real.parent)
    except BaseException:  # no finally: Ctrl-C while it removed nothing would fail a folder that is in place
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder in one step for all readers, so that a kill leaves no half of it; it may be absent."""
    if path.is_dir():
        aside = scratch_beside(path)
        path.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)


def replace_folder(path: Path, scratch: Path) -> bool:
    """Rename a folder to `path`, which is absent or holds only leftovers; these move into the new folder.

    Returns:
        Whether this process was in the folder at `path`. It is in the new one then.

    Raises:
        OSError: `path` cannot be replaced, because it is a mount point, for example. Then all is as before.
    """
    left = [one for one in path.glob("*") if is_leftover(one.name)]  # a rename replaces only an empty folder
    is_here = path.exists() and path.samefile(".")
    try:
        for one in left:
            one.replace(scratch / one.name)
        scratch.replace(path)
    except OSError:
        for one in left:
            with suppress(OSError):  # it has not moved
                (scratch / one.name).replace(one)
        raise
    if is_here:  # this process would be in a folder that is gone
        os.chdir(path)
    return is_here


def check_replaceable(path: Path) -> None:
    """Refuse a folder that `replace_folder` cannot replace, by replacing it by an empty one.

    Raises:
        UserError: it is a mount point, for example.
    """
    if not path.exists():
        return
    scratch = scratch_beside(path)
    with writing(path, in_parts=False):
        scratch.mkdir()
        try:
            replace_folder(path, scratch)
        except OSError:
            scratch.rmdir()
            raise


def check_new_folder(path: Path) -> None:
    """Refuse a path at which something exists already.

    Leftovers of systems do not count.

    Raises:
        UserError: there is a file, or a folder that holds something.
    """
    if path.exists() and (not path.is_dir() or entries(path)):
        raise UserError(f"{path}: expected a new or an empty folder; choose another with --out, or remove this one")


def sweep(root: Place) -> None:
    """Remove what killed processes of this machine left in the temporary folder."""
    _remove_abandoned(_scratch_folder(root).glob("*"))


def _remove_abandoned(scratch: Iterable[Path]) -> None:
    with suppress(OSError):  # without the right to look there; writing says so
        for leftover in scratch:
            if is_abandoned(leftover):
                with suppress(OSError):
                    leftover.unlink()


def scratch_path(root: Place, name: str) -> Path:
    """Return a path of this machine for an unfinished file of `root`, which only this process uses.

    After a kill `sweep` removes the file, and so does the next call for that name, as not all folders are swept.
    """
    _remove_abandoned(_scratch_folder(root).glob(scratch_pattern(name)))
    return _scratch_folder(root) / scratch_name(name)


def _scratch_folder(root: Place) -> Path:
    return (root if isinstance(root, Path) else cache_folder()) / TEMPORARY


def _put_in_place(scratch: Path, path: Path, *, exclusive: bool) -> None:
    """Put a finished file in place in one step.

    A rename replaces an older file. If `exclusive`, a hard link is made instead, because only one of two machines on a
    file system can make it.
    """
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
    """Wait until a file's bytes, or the names in a folder, are on disk."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until a folder and everything below it are on disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)

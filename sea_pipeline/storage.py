"""Files that are either whole or absent, and the hashes that name what is in them."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from sea_pipeline.errors import UserError

TEMPORARY = ".tmp"
"""Folder inside every output folder: a rename is atomic only within one file system."""

_CANNOT_WRITE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the disk quota or free some space",
    errno.EFBIG: "raise the file size limit",
    errno.EROFS: "choose a folder that can be written with --out",
    errno.EACCES: "choose a folder that can be written with --out",
    errno.EPERM: "choose a folder that can be written with --out",
    errno.ENOTDIR: "choose another folder with --out",
    errno.EEXIST: "choose another folder with --out",
}


@contextmanager
def writing(path: Path, root: Path | None = None) -> Iterator[None]:
    """Turns a full disk, a read-only disk or missing rights into a `UserError` that names `path`.

    With `root`, errors that name a file outside it pass: they are not the output's.
    """
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | Path) else path
        if error.errno not in _CANNOT_WRITE or (root is not None and not named.is_relative_to(root)):
            raise
        raise UserError(
            f"{path}: cannot be written: {os.strerror(error.errno)}; {_CANNOT_WRITE[error.errno]} and run the "
            "same command again (what is finished is kept)"
        ) from error


def cache_folder() -> Path:
    """Where computed files are kept between runs: `$SEA_PIPELINE_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("SEA_PIPELINE_CACHE") or platformdirs.user_cache_dir("sea-pipeline"))


def data_folder(name: str) -> Path:
    """A folder of files that come with this package: inside the wheel, or at the top of a checkout."""
    inside = Path(__file__).parent / "data" / name
    return inside if inside.is_dir() else Path(__file__).parent.parent / name


def make_folder(path: Path) -> None:
    """Creates a folder and its parents; a `UserError` where that is not possible."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other process is inside this block for the same folder; a kill lets the next one in."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: the hashes still tell who came second
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def publish(path: Path, root: Path) -> Iterator[Path]:
    """Yields a temporary path inside `root`; on success its file appears at `path`, whole and on disk.

    After an exception or a kill nothing has appeared at `path`, and what stood there before still stands.
    """
    scratch = root / TEMPORARY / _scratch_name(path.name)
    make_folder(scratch.parent)
    make_folder(path.parent)
    with writing(path, root):
        try:
            yield scratch
            _sync(scratch)
            scratch.replace(path)
            _sync(path.parent)
        finally:
            scratch.unlink(missing_ok=True)


def publish_bytes(path: Path, data: bytes, root: Path) -> None:
    """Writes a small file, whole or not at all."""
    with publish(path, root) as scratch:
        scratch.write_bytes(data)


@contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`, which becomes `path` on success: until then that is absent or empty.

    After an exception or a kill nothing has appeared at `path`. What a killed process left beside it goes when the next
    one of this machine begins.
    """
    make_folder(path.parent)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.*.*"):
        if _is_abandoned(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    scratch = path.parent / _scratch_name(f".{path.name}")
    try:
        with writing(path):
            scratch.mkdir()
            yield scratch
            scratch.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sweep(root: Path) -> None:
    """Removes what killed processes of this machine left in the temporary folder."""
    for leftover in (root / TEMPORARY).glob("*"):
        if _is_abandoned(leftover):
            with suppress(OSError):
                leftover.unlink()


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - whatever JSON holds
    """The one spelling of a JSON value that is hashed: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _scratch_name(name: str) -> str:
    """A name of its own for this process's `name`; `_is_abandoned` reads it."""
    return f"{name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def _is_abandoned(scratch: Path) -> bool:
    """Whether a process of this machine that is no more left it."""
    host, process = ["", "", *scratch.name.split(".")][-3:-1]
    return host == _host() and process.isdigit() and not _alive(int(process))


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

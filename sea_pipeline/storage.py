"""Files that are either whole or absent, and the hashes that name what is in them."""

import errno
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
def writing(path: Path, root: Path) -> Iterator[None]:
    """Turns a full disk, a read-only disk or missing rights below `root` into a `UserError` that names `path`."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(root)
        if error.errno not in _CANNOT_WRITE or elsewhere:
            raise
        raise UserError(
            f"{path}: cannot be written: {os.strerror(error.errno)}; {_CANNOT_WRITE[error.errno]} and run the "
            "same command again (what is finished is kept)"
        ) from error


def make_folder(path: Path) -> None:
    """Creates a folder and its parents; a `UserError` where that is not possible."""
    with writing(path, Path(path.anchor)):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def publish(path: Path, root: Path) -> Iterator[Path]:
    """Yields a temporary path inside `root`; on success its file appears at `path`, whole and on disk.

    After an exception or a kill nothing has appeared at `path`, and what stood there before still stands.
    """
    scratch = root / TEMPORARY / f"{path.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    with writing(path, root):
        scratch.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
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


def sweep(root: Path) -> None:
    """Removes what killed processes of this machine left in the temporary folder."""
    for leftover in (root / TEMPORARY).glob("*"):
        host, process = ["", "", *leftover.name.split(".")][-3:-1]
        if host == _host() and process.isdigit() and not _alive(int(process)):
            leftover.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - whatever JSON holds
    """The one spelling of a JSON value that is hashed: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


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

"""Lock folders, so that one process at a time works on them."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.publish import make_folder
from sea_pipeline.storage.retry import looking

if TYPE_CHECKING:
    from sea_pipeline.storage.paths import Place

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None
"""Whether this system can lock a folder. Windows cannot, so labels can be read there but not written."""


def refuse_without_locks(folder: "Place") -> None:
    """Refuse to write a folder of this machine if the system has no locks to keep two writers apart.

    Raises:
        UserError: this system has no locks on folders.
    """
    if isinstance(folder, Path) and not HAS_LOCKS:
        raise UserError(
            f"{folder}: expected Linux or macOS, whose locks keep two runs of a folder apart; found none on this "
            "system; run the same command there, or in WSL (reading what they wrote works here)"
        )


@contextmanager
def locked(folder: "Place") -> Iterator[bool]:
    """Wait until no other process is inside this block for the folder, or the file.

    A killed process frees the lock. Yields whether the folder is locked: systems, file systems and stores without locks
    yield False, and nobody waits. There `publish` with `exclusive` tells who came first.
    """
    if not isinstance(folder, Path) or not HAS_LOCKS:
        yield False
        return
    # NFS locks a file only if it is open for writing, and nothing opens a folder for that.
    with looking(folder):
        descriptor, has_lock = os.open(folder, os.O_RDWR if folder.is_file() else os.O_RDONLY), False
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            has_lock = True
        yield has_lock
    finally:
        os.close(descriptor)


@contextmanager
def claimed_for_run(folder: Path, seconds: float = 20) -> Iterator[None]:
    """Lock a folder for hours, and fail if another process holds it.

    Who held it before may have finished the work, so look at it again inside this block. If the folder was renamed or
    removed meanwhile, a new one is made and locked.

    Args:
        folder: the folder, on this machine; made if it does not exist.
        seconds: how long to wait for the lock, because children of a killed run may still be ending.

    Raises:
        UserError: another process still works on the folder, it cannot be made, or this system has no locks.
    """
    refuse_without_locks(folder)
    give_up, is_locked = time.monotonic() + seconds, False
    while not is_locked:
        make_folder(folder)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # it was renamed or removed just now
            continue
        try:
            while _is_claimed(descriptor):
                if time.monotonic() > give_up:
                    raise UserError(f"{folder}: another process works on it; wait for its end, or end it")
                time.sleep(0.2)
            if is_locked := _is_at(descriptor, folder):
                yield
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, folder: Path) -> bool:
    """Tell whether an open folder still has its name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    return False


def _is_claimed(descriptor: int) -> bool:
    """Tell whether another process has the lock.

    If not, take it.

    A file system without locks counts as free.
    """
    with suppress(OSError):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False

"""Lock folders, so that one process at a time works on them."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sea_pipeline.core.errors import UserError

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

    Args:
        folder: the folder, on this machine.
        seconds: how long to wait for the lock, because children of a killed run may still be ending.

    Raises:
        UserError: another process still works on the folder, or this system has no locks.
    """
    refuse_without_locks(folder)
    descriptor, give_up = os.open(folder, os.O_RDONLY), time.monotonic() + seconds
    try:
        while _is_claimed(descriptor):
            if time.monotonic() > give_up:
                raise UserError(f"{folder}: another process works on it; wait for its end, or end it")
            time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


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

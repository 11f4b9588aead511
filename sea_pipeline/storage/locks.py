"""Locks on folders: who works on one alone."""

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
"""Whether this system can lock a folder. Windows cannot: labels are read there, and written elsewhere."""


def refuse_without_locks(folder: "Place") -> None:
    """Refuses to write a folder of this machine if nothing here can keep two processes apart that write it.

    Raises:
        UserError: this system has no locks on folders.
    """
    if isinstance(folder, Path) and not HAS_LOCKS:
        raise UserError(
            f"{folder}: expected Linux or macOS, whose locks keep two runs of a folder apart; found none on this "
            "system; run the same command there, or in WSL (reading what they wrote works here)"
        )


@contextmanager
def alone(folder: "Place") -> Iterator[bool]:
    """Waits until no other process is inside this block for the folder; a kill lets the next one in.

    Yields whether anybody waits: on file systems and systems without locks and in stores elsewhere nobody does, and
    `publish` with `exclusive` says who came first.
    """
    if not isinstance(folder, Path) or not HAS_LOCKS:
        yield False
        return
    descriptor, locked = os.open(folder, os.O_RDONLY), False
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            locked = True
        yield locked
    finally:
        os.close(descriptor)


@contextmanager
def claimed(folder: Path, seconds: float = 20) -> Iterator[None]:
    """As `alone`, for blocks of hours: who comes second waits some seconds, as a killed one's children may live on.

    Raises:
        UserError: another process goes on with the folder, or nothing here can lock it.
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
    """Whether another process has the lock; else this one has it now, where the file system knows of locks."""
    with suppress(OSError):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False

"""What is written is on disk, and not only in the memory of this machine."""

import os
from pathlib import Path


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

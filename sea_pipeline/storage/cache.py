"""What is computed once and kept in the cache, under a name that tells what it was computed from."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.locks import alone
from sea_pipeline.storage.paths import cache_folder
from sea_pipeline.storage.publish import make_folder, publish, sweep

_Kept = TypeVar("_Kept")


def remembered(
    name: str,
    read: Callable[[Path], _Kept | None],
    make: Callable[[], _Kept],
    write: Callable[[_Kept, Path], object],
) -> _Kept:
    """Reads something from the cache, or makes it and keeps it; of several processes, one makes it.

    Args:
        name: `FOLDER/FILE` below the cache; the file's name tells it from everything else.
        read: gives it, or None if the file is absent or damaged.
        make: makes it.
        write: writes it to a file.

    Raises:
        UserError: the cache cannot be written.
    """
    path = cache_folder() / name
    if (kept := read(path)) is not None:
        return kept
    try:
        make_folder(path.parent)
    except UserError as error:
        raise UserError(f"{path.parent}: cannot be created; set SEA_PIPELINE_CACHE to a folder that can be") from error
    lock = path.with_suffix(".lock")
    lock.touch()
    with alone(lock):
        if (kept := read(path)) is None:
            sweep(path.parent)
            kept = make()
            with publish(path, path.parent) as scratch:
                write(kept, scratch)
        return kept

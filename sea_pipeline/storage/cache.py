"""Keep computed values in the cache, under names that say what they were computed from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sea_pipeline.storage.hashing import fingerprint_of
from sea_pipeline.storage.locks import locked
from sea_pipeline.storage.paths import cache_folder
from sea_pipeline.storage.publish import make_folder, publish, sweep, writing

_Kept = TypeVar("_Kept")


def remembered(
    name: str,
    read: Callable[[Path], _Kept | None],
    make: Callable[[], _Kept],
    write: Callable[[_Kept, Path], object],
) -> _Kept:
    """Read a value from the cache, or make it and keep it there.

    Of several processes that need it at once, one makes it and the others wait.

    Args:
        name: `FOLDER/FILE` below the cache. The file's name must differ for every other value.
        read: returns the value, or None if the file is absent or damaged.
        make: makes the value.
        write: writes the value to a file.

    Raises:
        UserError: the cache cannot be written.
    """
    path = cache_folder() / name
    if (kept := read(path)) is not None:
        return kept
    lock = path.with_suffix(".lock")
    make_folder(path.parent)
    with writing(path.parent):
        lock.touch()
    with locked(lock):
        if (kept := read(path)) is None:  # another process may have made it while this one waited
            sweep(path.parent)
            kept = make()
            with publish(path, path.parent) as scratch:
                write(kept, scratch)
        return kept


def with_checksum(found: dict[str, Any]) -> bytes:
    """Encode a JSON object together with its sha256, for `read_checked`."""
    return json.dumps({"found": found, "sha256": fingerprint_of(found)}).encode()


def read_checked(path: Path) -> dict[str, Any] | None:
    """Read what `with_checksum` encoded, or return None if the file is absent or damaged."""
    try:
        kept = json.loads(path.read_bytes())
        found: dict[str, Any] = kept["found"]
        return found if kept["sha256"] == fingerprint_of(found) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None

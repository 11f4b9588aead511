"""Results that are one file of this machine, in a folder where others keep theirs: nothing else of ours stays there."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sea_pipeline.errors import UserError
from sea_pipeline.storage import TEMPORARY, make_folder, publish


def check_result(out: Path) -> None:
    """Before any work is done: whether a file can be written there; its folder is made.

    Raises:
        UserError: it cannot, or a folder has that name.
    """
    if out.is_dir():
        raise UserError(f"--out {out}: expected a file to write; found a folder; name a file in it")
    make_folder(out.parent / TEMPORARY)
    _clear(out)


@contextmanager
def publish_result(out: Path) -> Iterator[Path]:
    """Yields a temporary path; on success its file appears at `out`, whole. See `storage.publish`."""
    try:
        with publish(out, out.parent) as scratch:
            yield scratch
    finally:
        _clear(out)


def _clear(out: Path) -> None:
    with suppress(OSError):  # another process may be writing beside it
        (out.parent / TEMPORARY).rmdir()

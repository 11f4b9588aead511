"""Results that are one file of this machine, in a folder where others keep theirs: nothing else of ours stays there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage import make_folder, publish, writing
from sea_pipeline.storage.scratch import scratch_beside


def check_result(out: Path) -> None:
    """Before any work is done: whether a file can be written there; its folder is made.

    Raises:
        UserError: it cannot, or a folder has that name.
    """
    if out.is_dir():
        raise UserError(f"--out {out}: expected a file to write; found a folder; name a file in it")
    make_folder(out.parent)
    scratch = scratch_beside(out)
    with writing(out, in_parts=False):
        scratch.touch()
        scratch.unlink()


@contextmanager
def publish_result(out: Path) -> Iterator[Path]:
    """Yields a temporary path; on success its file appears at `out`, whole. See `storage.publish`."""
    with publish(out, out.parent, scratch=scratch_beside(out)) as scratch:
        yield scratch

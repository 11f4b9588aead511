"""Write a command's result, which is one file that the user names, and keep files that are no such result."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.paths import Place, followed
from sea_pipeline.storage.publish import make_folder, publish, writing
from sea_pipeline.storage.scratch import scratch_beside

_EDGE = 4096
"""The bytes at a file's beginning and end in which its mark is looked for."""


class ResultKind(NamedTuple):
    """A kind of result."""

    option: str
    """The option that names the file."""
    mark: bytes
    """Bytes near the beginning or the end of each such file, by which an earlier one is known."""


def check_result(out: Path, kind: ResultKind, reads: Iterable[Place]) -> None:
    """Check that a file can be written at `out`, before any work is done, and make its folder.

    Args:
        out: the file. A link stands for what it leads to.
        kind: what is written. An earlier one and an empty file may be replaced.
        reads: the files and folders that the command reads; some may be absent.

    Raises:
        UserError: it cannot be written; there is something else than a file, or a file that no such command wrote; the
            command reads this file or a folder that holds it.
    """
    expected, real = f"{kind.option} {out}: expected a file to write", followed(out)
    if out.exists() and not out.is_file():
        found = "a folder; name a file in it" if out.is_dir() else "a device or a pipe; name a file"
        raise UserError(f"{expected}; found {found}")
    with writing(out, in_parts=False):
        replaces = out.exists() and out.stat().st_size > 0
        if not (replaces and _has(out, kind.mark)):
            _refuse_inputs(expected, real, reads)
            if replaces:
                raise UserError(f"{expected}; found one that the command did not write; name another, or remove it")
        make_folder(real.parent)
        scratch = scratch_beside(real)
        scratch.touch()
        scratch.unlink()


def _has(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        first = file.read(_EDGE)
        file.seek(max(0, os.fstat(file.fileno()).st_size - _EDGE))
        return mark in first or mark in file.read()


def _refuse_inputs(expected: str, real: Path, reads: Iterable[Place]) -> None:
    local = [read for read in reads if isinstance(read, Path) and read.exists()]
    real = Path(os.path.abspath(real))  # noqa: PTH100 - without following links, of which the caller has followed one
    for read in local:
        places = (real, *real.parents) if read.is_dir() else (real,)
        if any(one.exists() and one.samefile(read) for one in places):
            found = f"a path in {read}" if read.is_dir() else read
            raise UserError(f"{expected}; found {found}, which the command reads; name a file elsewhere")


@contextmanager
def publish_result(out: Path) -> Iterator[Path]:
    """Yield a temporary path whose file appears at `out` on success, whole.

    If `out` is a link, the file that it leads to appears. See `publish`.
    """
    real = followed(out)
    with publish(real, real.parent, scratch=scratch_beside(real), in_parts=False) as scratch:
        yield scratch

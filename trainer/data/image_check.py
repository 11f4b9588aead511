"""Find images that cannot be read, before the first step and at the cost of a few reads for each.

A file that begins and ends as its format says is taken for whole. Every other file is decoded, so a good image of an
odd form is never refused. What only decoding shows, such as damage in the middle, is not found.
"""

import hashlib
import stat
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import broadcast_object_list
from PIL import Image

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Reporter
from sea_pipeline.inputs.image_bytes import JPEG, PNG
from sea_pipeline.inputs.llava_json import shown
from sea_pipeline.inputs.pixels import BadImageError, upright_size
from sea_pipeline.storage.paths import cache_folder
from sea_pipeline.storage.publish import make_folder, publish_bytes
from trainer.data.bad_rows import looked_at, unreadable_because

_KEPT = 32_768
"""Files after which those found whole are kept, so that the same command goes on from there."""
_END = {JPEG: b"\xff\xd9", PNG: b"\0\0\0\0IEND\xaeB`\x82"}
_LARGE = 1 << 20
"""Bytes. The header of a larger file is read, too, because it may have more pixels than Pillow allows."""


class _Found(NamedTuple):
    """What is known of an image's file: a hash of its path, size and time, and why it cannot be read, or None."""

    state: int
    problem: str | None


def unreadable_files(
    names: Sequence[str], locate: Callable[[str], Path], root: Path, reporter: Reporter
) -> dict[str, str]:
    """Find the images that cannot be read, each with the reason.

    A file that was found whole is not opened again until its size or time changes. The first process looks, and all
    processes of a run get its answer.

    Args:
        names: image ids, each once.
        locate: returns the file of an image id.
        root: folder of the images; for each there is one list of files that were found whole.
        reporter: receives progress if it takes longer than seconds.
    """
    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    found: list[dict[str, str] | Exception] = [{}]
    if not group or torch.distributed.get_rank() == 0:
        try:
            found = [_unreadable(names, locate, root, reporter)]
        except (UserError, OSError) as problem:  # the others wait for an answer
            found = [problem]
    if group:
        broadcast_object_list(found)
    (answer,) = found
    if isinstance(answer, Exception):
        raise answer
    return answer


def _unreadable(names: Sequence[str], locate: Callable[[str], Path], root: Path, reporter: Reporter) -> dict[str, str]:
    folder = cache_folder() / "images"
    file = folder / f"{hashlib.sha256(str(root.absolute()).encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.npy"
    known = _known(file)
    held = set(known.tolist())
    problems: dict[str, str] = {}
    whole: set[int] = set()
    look = looked_at(names, lambda name: _look(name, locate(name), held), "checking that images can be read", reporter)
    with closing(look) as looked:
        for number, (name, answer) in enumerate(looked, 1):
            if answer.problem is None:
                whole.add(answer.state)
            else:
                problems[name] = f"expected images that can be read; found {shown(name)}: {answer.problem}"
            if not number % _KEPT:  # processes that wait end the run after their time limit
                _keep(file, held | whole)
    if not whole <= held:
        _keep(file, held | whole)
    return problems


def _known(file: Path) -> npt.NDArray[np.uint64]:
    """Load the states of files that were found whole, or none if they cannot be read: they are only a shortcut."""
    with suppress(OSError, ValueError, EOFError):
        found = np.load(file, allow_pickle=False)
        if found.dtype == np.uint64 and found.ndim == 1:
            return np.asarray(found, np.uint64)
    return np.zeros(0, np.uint64)


def _keep(file: Path, states: set[int]) -> None:
    data = BytesIO()
    np.save(data, np.sort(np.fromiter(states, np.uint64, len(states))))
    make_folder(file.parent)
    publish_bytes(file, data.getvalue(), file.parent)


def _look(name: str, path: Path, held: set[int]) -> _Found:
    """Look at one file, unless it was found whole before."""
    state = 0
    with suppress(OSError, BadImageError):  # reading all of it says what is wrong
        status = path.stat()
        said = f"{name}\0{status.st_size}\0{status.st_mtime_ns}".encode("utf-8", "surrogateescape")
        state = int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "little")
        if state in held or (stat.S_ISREG(status.st_mode) and _looks_whole(path, status.st_size)):
            return _Found(state, None)
    return _Found(state, unreadable_because(path))


def _looks_whole(path: Path, size: int) -> bool:
    """Tell whether a file begins and ends as JPEG, PNG or WebP does, and has as many pixels as Pillow allows."""
    with path.open("rb", buffering=0) as file:
        head = file.read(32)
        file.seek(max(0, size - 16))
        end = file.read(16)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        whole = int.from_bytes(head[4:8], "little") + 8 <= size
    else:
        whole = any(head.startswith(begin) and end.endswith(last) for begin, last in _END.items())
    if head.startswith(PNG):
        width, height = (int.from_bytes(head[start : start + 4], "big") for start in (16, 20))
        whole = whole and width * height <= (Image.MAX_IMAGE_PIXELS or 0)
    if whole and size > _LARGE:
        upright_size(path)
    return whole

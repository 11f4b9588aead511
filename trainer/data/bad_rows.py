"""Find all rows of data that cannot be trained, count them by kind, and refuse or leave them out."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset as Rows

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.parallel import ThreadPool, batched, prefetched_map
from sea_pipeline.core.progress import SILENT, Advance, Reporter, progress_if_slow
from sea_pipeline.inputs.llava_json import record_name, relative_path, shown
from sea_pipeline.inputs.pixels import OF_ONE_FILE, BadImageError, read_image
from sea_pipeline.inputs.sources.files import in_other_form

_LEAVE_OUT = "leave such rows out with data.bad_rows: leave_out (--bad-rows leave_out)"
_IDS = 10
"""At most this many ids of each kind are named in an error."""
_BATCH = 10_000
_READERS = 4
"""Images decoded at once."""
_THREADS = 32
"""More than cores, because they wait for a disk or a network."""
_CHUNK = 64
"""Files that a thread looks at before it gets others."""

_Found = TypeVar("_Found")


class BadRow(NamedTuple):
    """One row that cannot be trained."""

    number: int
    """Place in the file, counted from 1."""
    id: str
    reason: str

    @property
    def expected(self) -> str:
        """Return the part of the reason before what was found."""
        return re.split(r"[;:,]? found ", self.reason, maxsplit=1)[0]

    @property
    def kind(self) -> str:
        """Return what was expected, with N for each number."""
        return re.sub(r"\d+", "N", self.expected)


@dataclass(frozen=True)
class LeftOutRows:
    """The rows that a run leaves out."""

    rows: tuple[BadRow, ...] = ()

    def kinds(self) -> dict[str, int]:
        """Count the rows by kind, the most common kind first.

        A kind whose rows all expected the same is named by that, with its numbers.
        """
        expected: dict[str, set[str]] = defaultdict(set)
        for row in self.rows:
            expected[row.kind].add(row.expected)
        counts = Counter(row.kind for row in self.rows).most_common()
        return {min(expected[kind]) if len(expected[kind]) == 1 else kind: count for kind, count in counts}

    def sha256(self) -> str:
        """Hash the row numbers, in order."""
        return hashlib.sha256(",".join(str(row.number) for row in sorted(self.rows)).encode()).hexdigest()

    def fields(self) -> dict[str, Any]:
        """Return what a run's or a teacher's fields say of them: nothing if there are none."""
        return {"left_out": [len(self.rows), self.sha256()]} if self.rows else {}

    def and_more(self, rows: Iterable[BadRow]) -> "LeftOutRows":
        """Return a copy with more rows."""
        return LeftOutRows((*self.rows, *rows))


NOTHING = LeftOutRows()


def bad_rows(rows: Rows) -> list[BadRow]:
    """List the rows that were refused when they were tokenised.

    The dataset has the columns `number`, `id` and `refused`; `refused` is the reason, or null for a good row.
    """
    is_bad = rows.with_format("arrow")["refused"][:].is_valid().to_numpy(zero_copy_only=False)
    chosen = rows.select_columns(["number", "id", "refused"]).select(np.flatnonzero(is_bad))
    return [BadRow(row["number"], row["id"], row["refused"]) for row in chosen]


def refuse(path: Path, rows: Iterable[BadRow], total: int, *, nothing_left: bool = False) -> None:
    """Raise an error if there are bad rows.

    Args:
        path: the file.
        rows: the bad rows, in any order; none is fine.
        total: number of rows in the file.
        nothing_left: the bad rows are to be left out, but no other row exists.

    Raises:
        UserError: there are bad rows. The message is one line with the count of each kind, the fault of its first
            row, and up to ten ids.
    """
    every = sorted(rows)
    if not every:
        return
    if len(every) == 1:
        (row,) = every
        left = "no other row is left to train on" if nothing_left else f"mend or remove it, or {_LEAVE_OUT}"
        raise UserError(f"{path}: {record_name(path, row.number)}, id {row.id!r}: {row.reason}; {left}")
    kinds: dict[str, list[BadRow]] = defaultdict(list)
    for row in every:
        kinds[row.kind].append(row)
    named = []
    for alike in sorted(kinds.values(), key=len, reverse=True):
        ids = ", ".join(repr(row.id) for row in alike[:_IDS]) + (", ..." if len(alike) > _IDS else "")
        named.append(f"{len(alike):,} x {alike[0].reason} (ids {ids})")
    advice = f"mend or remove them, or {_LEAVE_OUT}"
    if nothing_left:
        advice = "no others are left to train on; mend some"
    raise UserError(f"{path}: {len(every):,} of {total:,} rows cannot be trained: {'; '.join(named)}; {advice}")


def image_names(rows: Rows) -> set[str]:
    """Collect the name of each image in the rows, spelled as in the data."""
    names: set[str] = set()
    for batch in rows.select_columns(["images"]).with_format("arrow").iter(_BATCH):
        names.update(pc.unique(pc.list_flatten(batch["images"])).to_pylist())
    return names


def missing_images(rows: Rows, root: Path, reporter: Reporter = SILENT) -> dict[str, str]:
    """Find the images that are not files below the image root, each with the reason."""
    names = list(image_names(rows))
    looked = looked_at(names, lambda name: _missing(name, root), "looking for images", reporter)
    return {name: reason for name, reason in looked if reason is not None}


def looked_at(
    names: Sequence[str], look: Callable[[str], _Found], doing: str, reporter: Reporter
) -> Generator[tuple[str, _Found], None, None]:
    """Look at each image's file in threads, and yield what is found in the order of the names.

    `reporter` hears what is being done if it takes longer than seconds.
    """
    chunks = list(batched(iter(names), _CHUNK))
    with ThreadPool(_THREADS) as pool, progress_if_slow(reporter, doing, len(names)) as advance:
        found = prefetched_map(pool, lambda chunk: [look(name) for name in chunk], chunks, 2 * _THREADS)
        for chunk, answers in zip(chunks, found, strict=True):
            yield from zip(chunk, answers, strict=True)
            advance(len(chunk))


def _missing(name: str, root: Path) -> str | None:
    """Return why an image is no file below the image root, or None if it is one."""
    try:
        path = relative_path(name, str(root))
        if not (root / path).is_file():
            found = f"found no {shown(name)} below {root}{in_other_form(root, path)}"
            return f"expected image files that are there; {found}"
    except ValueError as error:
        return f"expected paths below the image root; found {shown(name)}: {error} ({root})"
    except OSError as error:  # a name that is too long, a folder that may not be read
        return f"expected image files that can be opened; found {shown(name)}: {error.strerror}"
    return None


def unreadable_images(
    names: Iterable[str],
    locate: Callable[[str], Path],
    where: str = " in the labels' quarantine",
    advance: Advance = lambda _: None,
) -> dict[str, str]:
    """Find the images that cannot be decoded, each with the reason.

    Decoding is slow, so training gives only those images that labelling could not read.

    Args:
        names: the images.
        locate: returns the file of an image.
        where: where they were found to be unreadable, for the reason.
        advance: called with the number of images done.
    """
    chosen, found = list(names), {}

    def problem(name: str) -> str | None:
        return unreadable_because(locate(name))

    with ThreadPool(_READERS) as pool:
        for name, said in zip(chosen, prefetched_map(pool, problem, chosen, 2 * _READERS), strict=True):
            if said is not None:
                found[name] = f"expected images that can be read; found {shown(name)}{where}: {said}"
            advance(1)
    return found


def unreadable_because(path: Path) -> str | None:
    """Return why an image cannot be read, or None if it can be.

    Raises:
        OSError: the machine or the network is at fault, and not this file.
    """
    try:
        read_image(path)
    except BadImageError as error:
        return error.message
    except OSError as error:
        if error.errno not in OF_ONE_FILE:
            raise
        return error.strerror or str(error)
    return None


def rows_with(rows: Rows, images: Mapping[str, str]) -> list[BadRow]:
    """List the rows that show one of these images.

    The dataset has a column `number`. A row with several such images is listed once, with the reason of its first.
    """
    if not images:
        return []
    wanted = pa.array(sorted(images))
    found = []
    start = 0
    for batch in rows.select_columns(["images"]).with_format("arrow").iter(_BATCH):
        lists = batch["images"].combine_chunks()
        inside = pc.is_in(lists.flatten(), value_set=wanted).to_numpy(zero_copy_only=False)
        parents = pc.list_parent_indices(lists).to_numpy()
        for index in np.unique(parents[inside]).tolist():
            row = rows[start + index]
            bad = next(image for image in row["images"] if image in images)
            found.append(BadRow(row["number"], row["id"], images[bad]))
        start += len(lists)
    return found


def without(rows: Rows, bad: Iterable[BadRow]) -> Rows:
    """Select the rows that are not bad."""
    numbers = np.fromiter((row.number for row in bad), np.int64)
    if not len(numbers):
        return rows
    kept = ~np.isin(rows.with_format("arrow")["number"][:].to_numpy(), numbers)
    return rows.select(np.flatnonzero(kept))

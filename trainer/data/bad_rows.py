"""Rows of data that cannot be trained: all of them found, counted by kind, and refused or left out."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset as Rows

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.llava_json import place, relative_path, shown
from sea_pipeline.inputs.pixels import BadImageError, read_image

_IDS = 10
"""Ids that are named of a kind."""
_BATCH = 10_000


class BadRow(NamedTuple):
    """One row that cannot be trained."""

    number: int
    """Its place in the file, from 1."""
    id: str
    reason: str

    @property
    def kind(self) -> str:
        """What was expected, without this row's own values."""
        expected = re.split(r"[;:,]? found ", self.reason, maxsplit=1)[0]
        return re.sub(r"\d+", "N", expected)


@dataclass(frozen=True)
class LeftOut:
    """What a run does without."""

    rows: tuple[BadRow, ...] = ()

    def kinds(self) -> dict[str, int]:
        """Counts the rows by kind, the commonest first."""
        return dict(Counter(row.kind for row in self.rows).most_common())

    def sha256(self) -> str:
        """Hashes the rows' numbers."""
        return hashlib.sha256(",".join(str(row.number) for row in sorted(self.rows)).encode()).hexdigest()

    def and_more(self, rows: Iterable[BadRow]) -> "LeftOut":
        """Adds rows."""
        return LeftOut((*self.rows, *rows))


NOTHING = LeftOut()


def bad_rows(rows: Rows) -> list[BadRow]:
    """The rows, with columns `number` and `refused`, that were refused as they were tokenised."""
    is_bad = rows.with_format("arrow")["refused"][:].is_valid().to_numpy(zero_copy_only=False)
    chosen = rows.select_columns(["number", "id", "refused"]).select(np.flatnonzero(is_bad))
    return [BadRow(row["number"], row["id"], row["refused"]) for row in chosen]


def refuse(path: Path, rows: Iterable[BadRow], total: int, *, nothing_left: bool = False) -> None:
    """Stops if there are bad rows.

    Args:
        path: the file.
        rows: the bad ones.
        total: how many rows the file has.
        nothing_left: they are to be left out, and no others are there.

    Raises:
        UserError: one line that counts them by kind, each with what is wrong with its first row, and ten ids.
    """
    every = sorted(rows)
    if not every:
        return
    if len(every) == 1:
        (row,) = every
        left = "; no other row is left to train on" if nothing_left else ""
        raise UserError(f"{path}: {place(path, row.number)}, id {row.id!r}: {row.reason}{left}")
    kinds: dict[str, list[BadRow]] = defaultdict(list)
    for row in every:
        kinds[row.kind].append(row)
    named = []
    for alike in sorted(kinds.values(), key=len, reverse=True):
        ids = ", ".join(repr(row.id) for row in alike[:_IDS]) + (", ..." if len(alike) > _IDS else "")
        named.append(f"{len(alike):,} x {alike[0].reason} (ids {ids})")
    advice = "mend or remove them, or leave them out with data.bad_rows: leave_out (--bad-rows leave_out)"
    if nothing_left:
        advice = "no others are left to train on; mend some"
    raise UserError(f"{path}: {len(every):,} of {total:,} rows cannot be trained: {'; '.join(named)}; {advice}")


def image_names(rows: Rows) -> set[str]:
    """Every image of the rows, as the data calls it."""
    names: set[str] = set()
    for batch in rows.select_columns(["images"]).with_format("arrow").iter(_BATCH):
        names.update(pc.unique(pc.list_flatten(batch["images"])).to_pylist())
    return names


def missing_images(rows: Rows, root: Path) -> dict[str, str]:
    """The images that are no files below the image root, each with the reason."""
    found = {}
    for name in image_names(rows):
        try:
            there = (root / relative_path(name, str(root))).is_file()
            if not there:
                found[name] = f"expected image files that are there; found no {shown(name)} below {root}"
        except ValueError as error:
            found[name] = f"expected paths below the image root; found {shown(name)}: {error} ({root})"
        except OSError as error:  # a name that is too long, a folder that may not be read
            found[name] = f"expected image files that can be opened; found {shown(name)}: {error.strerror}"
    return found


def unreadable_images(names: Iterable[str], locate: Callable[[str], Path]) -> dict[str, str]:
    """Which of some images cannot be decoded, with the reason; for those that labelling could not read."""
    found = {}
    for name in names:
        try:
            read_image(locate(name))
        except BadImageError as error:
            found[name] = (
                f"expected images that can be read; found {shown(name)} in the labels' quarantine: {error.message}"
            )
    return found


def rows_with(rows: Rows, images: Mapping[str, str]) -> list[BadRow]:
    """The rows, with a column `number`, that show one of these images."""
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
    """The rows but for the bad ones."""
    numbers = np.fromiter((row.number for row in bad), np.int64)
    if not len(numbers):
        return rows
    kept = ~np.isin(rows.with_format("arrow")["number"][:].to_numpy(), numbers)
    return rows.select(np.flatnonzero(kept))

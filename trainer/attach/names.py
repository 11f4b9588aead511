"""Read image names, and refuse those that are not in the labels, which would switch SEA off without a word."""

import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sea_pipeline.core.errors import UserError

_EARLY = 32
"""Distinct names after which a warning says that most of them are missing."""
_SETTLED = 100
"""Distinct names after which none in the labels is an error."""
_FEW = 8
"""Names after which a small data set may have been seen, if each has come twice on average."""


def names_by_sample(image_ids: object) -> list[list[str]]:
    """Read the names of a batch's images, which are in a list for each sample, or all in one flat list.

    None in place of a list means no names. A flat list gives a list for each name.

    Raises:
        UserError: a name is not a str.
    """
    found = [_listed(each) for each in _listed(image_ids)]
    if wrong := [name for names in found for name in names if not isinstance(name, str)]:
        raise UserError(
            f"image_ids: expected the images' names in the labels, each a str; found {wrong[0]!r:.80}, of the type "
            f"{type(wrong[0]).__name__}; give the names as the labels have them"
        )
    return found


def flat_names(image_ids: object) -> list[str]:
    """Read the names of a batch's images as one list.

    Raises:
        UserError: a name is not a str.
    """
    return [name for names in names_by_sample(image_ids) for name in names]


def _listed(given: Any) -> list[Any]:  # noqa: ANN401 - whatever a user gives
    given = given.tolist() if hasattr(given, "tolist") else given  # of NumPy and torch
    if given is None:
        return []
    return [given] if isinstance(given, str | bytes) or not isinstance(given, Iterable) else list(given)


class NameCheck:
    """Compare the first images that `Attached.loss` gets with the labels: their names, and whether any has a pair.

    Every process looks at its own rows alone, and waits for no other.

    Args:
        ids: the names in the labels.
    """

    def __init__(self, ids: Collection[str]) -> None:
        self._ids, self._over, self._warned, self._compared = ids, False, False, False
        self._last: dict[str, None] = {}  # names of the last call
        self._found: set[str] = set()
        self._missing: dict[str, None] = {}  # in the order in which they came
        self._total = self._came = self._labelled = 0
        self._pairs_settled = False

    def look(self, names: Iterable[str]) -> None:
        """Look at the names of one call.

        Images without labels may be mixed with others. So names that have nothing to do with the labels' are an error
        only if none of the first 100 distinct ones is in the labels. Fewer give a warning alone. Names that differ from
        labels' by folders or the file's ending are an error in the first call if all do, and if one does when none was
        in the labels and images come again after others.

        Raises:
            UserError: none of the names so far is in the labels.
        """
        if self._over or not (fresh := dict.fromkeys(names)):
            return
        first = not self._total
        self._total += len(fresh)
        self._came += len(fresh.keys() - self._last)
        self._last = fresh
        for name in fresh:
            if name in self._ids:
                self._found.add(name)
            else:
                self._missing[name] = None
        seen = len(self._found) + len(self._missing)
        often = max(_FEW, 2 * seen)
        again = self._came >= often
        self._over = seen >= _SETTLED or bool(again and self._found)
        if not self._found and (self._over or self._look_alike(list(fresh), first=first, again=again)):
            raise UserError(f"attached.loss: {none_of(list(self._missing), self._ids)}")
        if not self._warned and (self._total >= often or seen >= _EARLY) and 2 * len(self._missing) > seen:
            self._warned = True
            warnings.warn(f"attached.loss: {_most_of(list(self._missing), seen, self._ids)}", stacklevel=3)

    def look_at_pairs(self, names: Iterable[str], pairs: int) -> None:
        """Warn once if the first labelled images gave no pair of patch and word.

        Args:
            names: of the images of one call.
            pairs: number of pairs that it drew.
        """
        if pairs or self._pairs_settled:
            self._pairs_settled = True
            return
        self._labelled += sum(name in self._ids for name in names)
        if self._labelled >= _FEW:
            self._pairs_settled = True
            warnings.warn(
                f"attached.loss: none of the first {self._labelled:,} labelled images has a patch with a word, so SEA "
                "learns nothing from them; look at the labels with sea-pipeline inspect",
                stacklevel=3,
            )

    def _look_alike(self, fresh: Sequence[str], *, first: bool, again: bool) -> bool:
        """Tell whether names are the labels' in another spelling: all of the first call, or one when images come again.

        It reads all names of the labels, so it is done at these two calls alone.
        """
        if first:
            return all(alike(fresh, self._ids))
        if not again or self._compared:
            return False
        self._compared = True
        return any(alike(list(self._missing), self._ids))


def check_measured(missing: Sequence[str], labelled: int, ids: Collection[str]) -> None:
    """Say that none of the images that `Attached.metrics` measured is in the labels.

    Raises:
        UserError: and each of their names differs from one in the labels by folders or the file's ending.
    """
    if labelled or not missing:
        return
    said = f"attached.metrics: {none_of(missing, ids)}"
    if all(alike(missing, ids)):
        raise UserError(said)
    warnings.warn(f"{said}; label_hit is not measured", stacklevel=4)


def none_of(missing: Sequence[str], ids: Collection[str]) -> str:
    """Say that none of some names is in the labels, and what to do."""
    return f"none of the first {len(missing):,} image names is in the labels: {_beside(missing, ids)}"


def _most_of(missing: Sequence[str], seen: int, ids: Collection[str]) -> str:
    return (
        f"{len(missing):,} of the first {seen:,} image names are not in the labels, and SEA skips their images: "
        f"{_beside(missing, ids)}"
    )


def _beside(missing: Sequence[str], ids: Collection[str]) -> str:
    """Show a name of each side, alike if there are such, and say how they come to agree."""
    others = alike(missing, ids)
    found, held = next(
        ((name, other) for name, other in zip(missing, others, strict=True) if other is not None),
        (missing[0], next(iter(ids), None)),
    )
    return (
        f"found {found!r}; the labels hold {'no names' if held is None else f'names such as {held!r}'}; give image_ids "
        "as the labels have them, or label again with names as your data has them (sea-pipeline label --images "
        "DATA.json --image-root FOLDER)"
    )


def alike(names: Sequence[str], ids: Iterable[str]) -> list[str | None]:
    """Find for each name one in the labels that differs from it by folders in front or by the file's ending alone.

    'photos/cat.jpg', 'cat' and 'CAT.jpeg' are like 'cat.jpg', but 'a/cat.jpg' is not like 'b/cat.jpg'.
    """
    wanted = {name: _parts(name) for name in names}
    lasts = {parts[-1] for parts in wanted.values()}
    by_last: dict[str, list[tuple[tuple[str, ...], str]]] = {last: [] for last in lasts}
    for other in ids:
        parts = _parts(other)
        if parts[-1] in lasts:
            by_last[parts[-1]].append((parts, other))
    return [
        next((other for parts, other in by_last[mine[-1]] if _ends_alike(mine, parts)), None)
        for mine in wanted.values()
    ]


def _parts(name: str) -> tuple[str, ...]:
    """Split a name into folders and the file's name without its ending, in small letters."""
    *folders, last = name.replace("\\", "/").casefold().split("/")
    return (*(folder for folder in folders if folder not in ("", ".")), last.rpartition(".")[0] or last)


def _ends_alike(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    shorter = min(len(one), len(other))
    return one[-shorter:] == other[-shorter:]

"""Carry the images' names around a trainer's collator, and refuse one that changes the order of the rows."""

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from sea_pipeline.core.errors import UserError
from trainer.attach.names import flat_names, names_by_sample

IDS = "image_ids"
"""The column of the data and the key of a batch that hold the images' names."""
_COMPARED = 16
"""Number of first rows whose order is compared, in each process and worker, by collating each of them alone, too."""

Collate = Callable[[Sequence[Any]], Any]


class CarryIds:
    """Carry the images' names around a collator that may drop them.

    All but the call is the collator's own: others ask of which class it is, save its tokenizer and set its options.

    Args:
        collate: the trainer's own collator.
        needed: whether rows without names are refused.
    """

    _carried: tuple[Collate, bool]
    _compared: int

    def __init__(self, collate: Collate, needed: bool) -> None:
        object.__setattr__(self, "_carried", (collate, needed))
        object.__setattr__(self, "_compared", 0)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # noqa: ANN401 - of isinstance
        return self._carried[0].__class__

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute
        return getattr(self._carried[0], name)

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401 - any attribute
        setattr(self._carried[0], name, value)

    def __reduce__(self) -> Any:  # noqa: ANN401 - of pickle, which would ask the class
        return CarryIds, self._carried

    def __call__(self, rows: Sequence[Any]) -> Any:  # noqa: ANN401 - whatever a collator gives
        """Collate rows, and add a list of names for each row, if the rows have any.

        A collator that reads `row["image_ids"]` and returns names of its own under this key pairs them itself.

        Raises:
            UserError: names are needed and missing, a name is not a str, or the batch has the images in another order.
        """
        collate, needed = self._carried
        if not all(isinstance(row, Mapping) and IDS in row for row in rows):
            batch = collate(rows)
            if isinstance(batch, MutableMapping) and IDS in batch:
                batch[IDS] = names_by_sample(batch[IDS])
            elif needed:
                raise UserError(
                    f"AttachMixin: expected a column {IDS} in the rows of the data, each a list of its images' names "
                    "in the labels; found none; add it, with an empty list for a row of text alone, behind any step "
                    "that drops columns"
                )
            return batch
        names = [flat_names(row[IDS]) for row in rows]
        given = [_Row({name: value for name, value in row.items() if name != IDS}, row[IDS]) for row in rows]
        alone = None
        if len(rows) > 1 and self._compared < _COMPARED:
            object.__setattr__(self, "_compared", self._compared + len(rows))
            alone = _images_alone(collate, [row for row, named in zip(given, names, strict=True) if named])
        batch = collate(given)
        if IDS in batch:
            batch[IDS] = names_by_sample(batch[IDS])
            return batch
        if alone is not None and _is_another_order(batch, alone):
            raise UserError(
                "AttachMixin: expected the images of a batch in the order of its rows; found another order, in which "
                "they would get other images' names; keep the order in the collator, or have it return "
                f"{IDS}: row['{IDS}'] of each row, in the order of its batch"
            )
        batch[IDS] = names
        return batch


class _Row(dict[str, Any]):
    """A row whose names are found by `row["image_ids"]` alone.

    Collators that make tensors of all columns do not see them. Such collators may make a batch of this class, too.
    """

    def __init__(self, columns: Mapping[str, Any], names: object = ()) -> None:
        super().__init__(columns)
        self._names = names

    def __missing__(self, name: str) -> Any:  # noqa: ANN401 - whatever the data have
        if name == IDS:
            return self._names
        raise KeyError(name)


def _images_alone(collate: Collate, rows: Sequence[Any]) -> list[bytes] | None:
    """Collate each row alone, and return the images of all in the order of the rows; None if that cannot be done.

    Rows of text alone are left out: alone or all together, they may be given an image that the mask hides.
    """
    with _same_random_numbers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Copies, because a collator may change what it is given.
            return [image for row in rows for image in _images(collate([copy.deepcopy(row)]))]
        except Exception:  # a collator need not take a row alone, and what is wrong for all shows in the batch
            return None


def _images(batch: Any) -> list[bytes]:  # noqa: ANN401 - whatever a collator gives
    """Return the bytes of each image, tile or patch of a batch, except padding."""
    found = batch.get("pixel_values")
    if found is None:
        return []
    pixels = torch.as_tensor(found).cpu()
    pixels = pixels.flatten(0, -4) if pixels.dim() > 3 else pixels  # (images, 3, height, width), or Qwen-VL's patches
    return [one.contiguous().view(torch.uint8).numpy().tobytes() for one in pixels if one.any()]


def _is_another_order(batch: Any, wanted: Sequence[bytes]) -> bool:  # noqa: ANN401 - whatever a collator gives
    """Tell whether a batch has the images that its rows have alone, but in another order, repeated or left out.

    An image that no row has alone tells nothing: a collator may draw it anew, or pad it to the batch's largest. So do
    images that are no tensor, such as arrays of different sizes.
    """
    try:
        found = _images(batch)
    except (ValueError, TypeError, RuntimeError):
        return False
    return found != wanted and set(found) <= set(wanted)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Let what follows this block draw the same random numbers as without it."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that collators draw from
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002

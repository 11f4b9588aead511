"""Names around a collator of the user's: those of a batch in another order are refused, or the collator's own."""

from collections.abc import Callable, Sequence
from random import random, seed
from typing import Any

import numpy as np
import pytest
import torch

from sea_pipeline.core.errors import UserError
from tests.trainer.attach.families import MAKERS, tiny
from tests.trainer.attach.worlds import Pictures
from trainer.attach.collator import CarryIds

Batch = dict[str, Any]
ORDERS = {"reversed": (1, 0), "left out": (0,), "repeated": (0, 0), "kept": (0, 1)}


def collator(name: str, order: Sequence[int] = (0, 1), *, names: bool = False) -> Callable[[Any], Batch]:
    """One of a family's processor, with the rows in another order."""

    def collate(rows: Any) -> Batch:
        rows = [rows[at] for at in order] if len(rows) > 1 else rows
        assert not any("image_ids" in row.keys() for row in rows)  # noqa: SIM118 - what a collator iterates over
        batch = tiny(name).batch([([row["image"]], "a red patch") for row in rows])
        return batch | ({"image_ids": [row["image_ids"] for row in rows]} if names else {})

    return collate


def rows(pictures: Pictures, *names: str) -> list[Batch]:
    return [{"image": pictures.image(name), "image_ids": name} for name in names]


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_in_another_order_is_refused_or_names_its_images(name: str, pictures: Pictures) -> None:
    given = rows(pictures, "wide.png", "tall.png")
    for said, order in ORDERS.items():
        named = CarryIds(collator(name, order, names=True), needed=True)(given)
        assert named["image_ids"] == [[given[at]["image_ids"]] for at in order]
        carrying = CarryIds(collator(name, order), needed=True)
        if said == "kept":
            assert carrying(given)["image_ids"] == [["wide.png"], ["tall.png"]]
            continue
        with pytest.raises(UserError, match=r"found another order, .* return image_ids: row\['image_ids'\] of"):
            carrying(given)


def test_only_the_first_rows_are_collated_alone(pictures: Pictures) -> None:
    """That draws no random numbers of the batch's, and may fail or tell nothing."""
    sizes: list[int] = []

    def collate(rows: Any) -> Batch:
        sizes.append(len(rows))
        if sizes == [1]:
            raise ZeroDivisionError
        return {"pixel_values": torch.rand(len(rows), 3, 2, 2), "drawn": (random(), np.random.rand())}  # noqa: NPY002

    given, drawn = rows(pictures, "wide.png", "tall.png"), []
    for call in (CarryIds(collate, needed=True), collate):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        seed(0)
        found = [call(given) for _ in range(9)]
        drawn.append([(batch["drawn"], batch["pixel_values"].tolist()) for batch in found])
    assert drawn[0] == drawn[1]
    assert sizes == [1, 2, *[1, 1, 2] * 7, 2, *[2] * 9]


def test_images_that_are_no_tensor_tell_nothing(pictures: Pictures) -> None:
    def collate(rows: Any) -> Batch:
        return {"pixel_values": [np.ones((3, 2, len(row["image_ids"]))) for row in rows]}

    given = rows(pictures, "wide.png", "other.png")
    assert CarryIds(collate, needed=True)(given)["image_ids"] == [["wide.png"], ["other.png"]]

"""Image names that the labels do not have, and names around a collator that puts a batch in another order."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from random import random, seed
from typing import Any

import numpy as np
import pytest
import torch

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.labels import run as label_run
from tests.support.refused import refused
from tests.support.tiny_runs import label_settings
from tests.support.world import word_file
from tests.trainer.attach.families import MAKERS, Tiny, tiny
from tests.trainer.attach.trained import attached_to, logged, own_trainer
from tests.trainer.attach.worlds import Pictures, whole_labels
from trainer.attach import Attached
from trainer.attach import attached as attached_module
from trainer.attach.collator import CarryIds
from trainer.attach.names import NameCheck, alike, flat_names, names_by_sample
from trainer.sampling import Drawn

NONE = r"none of the first {} image names is in the labels: found {!r}; the labels hold names such as {!r}; give "


@pytest.fixture
def made(pictures: Pictures, attached: Any) -> tuple[Tiny, Attached]:
    made = tiny("llava")
    return made, attached(made, labels=pictures.open(), sea={"window": 1})


def step(made: Tiny, attached: Attached, pictures: Pictures, names: list[str]) -> Any:
    made.model(**made.batch(pictures.batch([["wide.png"]] * len(names))))
    return attached.loss([[name] for name in names])


@pytest.mark.parametrize("name", ["photos/wide.png", "/home/me/photos/wide.png", "wide", "WIDE.jpg", ".\\wide.png"])
def test_a_name_with_other_folders_is_refused_at_once(
    name: str, made: tuple[Tiny, Attached], pictures: Pictures
) -> None:
    with refused(f"attached.loss: {NONE.format(1, name, 'wide.png')}"):
        step(*made, pictures, [name])


def test_the_advice_gives_labels_by_the_datas_names(pictures: Pictures, attached: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A patch."}]
    data.write_text(json.dumps([{"id": "1", "image": f"{pictures.folder.name}/wide.png", "conversations": turns}]))
    asked = label_settings(data, word_file(tmp_path / "words.txt"), tmp_path / "labels")
    with whole_labels():
        label_run.label_images(asked.model_copy(update={"image_root": str(pictures.folder.parent)}))
    made = tiny("llava")
    one = attached(made, labels=open_labels(tmp_path / "labels"), sea={"window": 1})
    assert float(step(made, one, pictures, ["images/wide.png"]).detach()) > 0


@pytest.mark.filterwarnings("ignore:attached.loss")
def test_a_name_alike_is_refused_when_the_data_were_seen(made: tuple[Tiny, Attached], pictures: Pictures) -> None:
    assert float(step(*made, pictures, ["x1", "x2"]).detach()) == 0
    with pytest.raises(UserError, match=r"none of the first 3 image names .* found 'wide'; the labels hold names such"):
        for at in range(9):
            step(*made, pictures, [f"x{at % 2 + 1}", ("x2", "wide")[at % 2]])


def test_a_hundred_names_of_nothing_are_refused_and_thirty_two_said() -> None:
    check = NameCheck(["a.jpg"])
    for at in range(31):
        check.look([f"{at}.png"])
    with pytest.warns(UserWarning, match="32 of the first 32 image names are not in the labels, and SEA skips"):
        check.look(["31.png"])
    for at in range(32, 99):
        check.look([f"{at}.png"])
    with pytest.raises(UserError, match=r"none of the first 100 image names is in the labels: found '0\.png'; "):
        check.look(["99.png"])


NUMBERS = [f"{at}.jpg" for at in range(1000)]
CAPTIONS = [f"{photo}.jpg" for photo in range(10) for _ in range(5)]
LOOKED: dict[str, tuple[list[str], list[list[str]], list[str]]] = {
    "unlabelled photos that come again": (
        ["9.jpg"],
        [*([f"{at}{side}.png"] for at in range(40) for side in "ab" * 5), ["9.jpg"]],
        ["2 of the first 2 image names are not in the labels, and SEA skips"],
    ),
    "a mixture": (
        NUMBERS,
        [[], ["a/a.png"], ["999.jpg"], *([f"a/{at}x.png", *NUMBERS[at : at + (at % 3 == 0)]] for at in range(300))],
        ["of the first 32 image names are not in the labels"],
    ),
    "captions of a photo in a row, which do not come again": (
        ["9.jpg"], [[name] for name in CAPTIONS], ["image names are not in the labels, and SEA skips"],
    ),
    "four of them at once": (
        ["9.jpg"], [CAPTIONS[at : at + 4] for at in range(0, 50, 4)], ["image names are not in the labels, and SEA"],
    ),
    "few missing names": (NUMBERS, [[f"{at}.jpg", *[f"a/{at}.png"][: at % 2]] for at in range(300)], []),
}  # fmt: skip
"""Names in the labels, calls, and what is said: once at most."""


@pytest.mark.parametrize("kind", LOOKED)
def test_missing_names_are_said_once_if_they_are_most(kind: str) -> None:
    ids, calls, said = LOOKED[kind]
    check = NameCheck(ids)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for names in calls:
            check.look(names)
    assert len(heard) == len(said)
    assert all(part in str(one.message) for part, one in zip(said, heard, strict=True))


def test_the_forms_of_names() -> None:
    """Flat or by sample; rows of text have None or nothing; a name may have bytes that are no text."""
    for given in ("a.png", ["a.png"], [["a.png"]], [None, ["a.png"], []], np.array(["a.png"]), {"a.png": 1}):
        assert flat_names(given) == ["a.png"]
    assert names_by_sample([["a", "b"], None, "c"]) == [["a", "b"], [], ["c"]]
    assert flat_names(None) == []


def test_a_name_with_stray_bytes_is_a_name(made: tuple[Tiny, Attached], pictures: Pictures) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert float(step(*made, pictures, ["t\udc80.png"]).detach()) == 0


def test_what_is_alike() -> None:
    ids = ["b/cat.jpg", "dog.jpg", "a.b.png"]
    assert alike(["a/cat.jpg", "cat", "x/b/cat.png", "x/dog.jpg", "", "a.b", "a.png"], ids) == [
        None, "b/cat.jpg", "b/cat.jpg", "dog.jpg", None, None, None
    ]  # fmt: skip


def test_metrics_say_it_too(made: tuple[Tiny, Attached], pictures: Pictures) -> None:
    tiny_one, attached = made
    batch = dict(tiny_one.batch(pictures.batch([["wide.png"]])))
    batch.pop("labels", None)
    with pytest.raises(UserError, match=r"attached\.metrics: none of the first 1 image names .*'photos/wide\.png'"):
        attached.metrics([{**batch, "image_ids": [["photos/wide.png"]]}])
    with pytest.warns(UserWarning, match="label_hit is not measured"):
        assert "gap" in attached.metrics([{**batch, "image_ids": [["nothing.jpg"]]}])
    both = [{**batch, "image_ids": [[name]]} for name in ("nothing.jpg", "wide.png")]
    assert "label_hit@1" in attached.metrics(both)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_images_without_pairs_are_said_once_and_logged(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = np.zeros(0, np.int64)
    monkeypatch.setattr(attached_module, "draw", lambda *_, **__: Drawn(none, none))
    made, one = attached_to("llava", pictures, sea={})
    trainer = own_trainer(made, pictures, tmp_path, one, max_steps=6)
    with pytest.warns(UserWarning, match="none of the first 8 labelled images has a patch with a word") as said:
        trainer.train()
    assert sum("labelled images" in str(each.message) for each in said) == 1
    assert logged(trainer, "sea_pairs") == [0.0] * 6
    assert not logged(trainer, "loss_sea")


def test_a_trainer_stops_at_the_first_step(pictures: Pictures, tmp_path: Path) -> None:
    made, one = attached_to("llava", pictures, sea={})
    trainer = own_trainer(made, pictures, tmp_path, one, max_steps=3, gradient_accumulation_steps=2)
    trainer.train_dataset = trainer.train_dataset.map(
        lambda row: {"image_ids": [f"photos/{name}" for name in row["image_ids"]]}
    )
    with pytest.raises(UserError, match=r"none of the first \d image names is in the labels: found 'photos/"):
        trainer.train()


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


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_in_another_order_is_refused_or_names_its_images(name: str, pictures: Pictures) -> None:
    given = rows(pictures, "wide.png", "tall.png")
    for said, order in ORDERS.items():
        named = CarryIds(collator(name, order, names=True), needed=True)(given)
        assert named["image_ids"] == [[given[at]["image_ids"]] for at in order]
        assert CarryIds(lambda rows, named=named: dict(named), needed=True)([{}, {}]) == named  # rows of other columns
        carrying = CarryIds(collator(name, order), needed=True)
        if said == "kept":
            assert carrying(given)["image_ids"] == [["wide.png"], ["tall.png"]]
            continue
        with pytest.raises(UserError, match=r"found another order, .* return image_ids: row\['image_ids'\] of"):
            carrying(given)


def test_rows_of_text_alone_may_be_given_an_image(pictures: Pictures) -> None:
    """A row's own collation may need one where the batch's needs none."""

    def collate(rows: Any) -> Batch:
        images = [row["image"] for row in rows if row["image"]] or [pictures.image("odd.png")]
        return tiny("llava").batch([([image], "a red patch") for image in images])

    given = [*rows(pictures, "wide.png", "tall.png"), {"image": None, "image_ids": []}]
    assert CarryIds(collate, needed=True)(given)["image_ids"] == [["wide.png"], ["tall.png"], []]
    assert CarryIds(collate, needed=True)(given[2:] * 2)["image_ids"] == [[], []]


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

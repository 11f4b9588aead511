"""Images are read in the order that their bytes lie in, and written in that of the plan."""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.parallel import InOrder
from sea_pipeline.inputs.samples import Listing
from sea_pipeline.inputs.sources import forward, list_samples, open_source, order, tables
from sea_pipeline.inputs.sources.order import planning_order, reading_order
from sea_pipeline.output import begin
from sea_pipeline.output.ledger import Ledger
from tests.support.contents import content
from tests.support.contents import rows as labels_of
from tests.support.photo_forms import Photos, copy_to, photos_in, write_dataset, write_parquet, write_tar
from tests.support.world import Label, Shelved

COUNT, GROUP = 90, 10


@pytest.fixture
def whole(shelved: Shelved) -> Path:
    """Photos, as many as make ids of one and of two digits, and their labels."""
    return shelved(COUNT, shard_size=COUNT)


@pytest.fixture
def photos(whole: Path) -> Photos:
    """Photos, the second of which is no image."""
    return photos_in(whole / "photos")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Row groups in the order in which reading them begins, with little kept of what has been read."""
    groups: list[int] = []
    cells = tables._cells

    def noted(table: Any, column: Any, group: int, rows: int) -> Iterator[Any]:
        groups.append(group)
        return cells(table, column, group, rows)

    monkeypatch.setattr(tables, "_cells", noted)
    monkeypatch.setattr(forward, "_ROWS", 16)
    monkeypatch.setattr(forward, "_BYTES", 0)
    monkeypatch.setattr(order, "_FEW", 0)
    return groups


NUMBERS = list(range(COUNT))
IDS: dict[str, list[Any]] = {
    "integers": NUMBERS,
    "names": [f"{number}.jpg" for number in NUMBERS],
    "falling": [f"{number:03d}" for number in reversed(NUMBERS)],
    "shuffled": random.Random(0).sample([f"{number:03d}" for number in NUMBERS], COUNT),
}


@pytest.mark.slow
@pytest.mark.parametrize(("ids", "place"), list(zip(IDS, ["", "memory://"] * 2, strict=True)))
def test_a_shard_reads_each_row_group_once_whatever_the_ids(
    label: Label, whole: Path, tmp_path: Path, begun: list[int], empty_memory: None, ids: str, place: str
) -> None:
    photos = photos_in(whole / "photos")
    write_parquet(tmp_path / "t" / "x.parquet", photos, group=GROUP, id=IDS[ids])
    copy_to("memory://t", tmp_path / "t")
    label(images=f"{place or tmp_path}/t/x.parquet", max_bad=0.5, shard_size=COUNT)
    assert set(begun) == set(range(COUNT // GROUP))
    assert len(begun) <= COUNT // GROUP + 2, "a thread that is late may have a group begun again"
    store = open_labels(tmp_path / "labels")
    names = dict(zip(map(str, IDS[ids]), photos, strict=True))
    (bad,) = [name for name in names if names[name] == "003.png"]
    assert [row["image_id"] for row in store.quarantine()] == [bad]
    assert store.ids == sorted(names.keys() - {bad})
    found = {names[name]: found[:2] for name, found in labels_of(store).items()}
    assert found == {name: found[:2] for name, found in labels_of(open_labels(whole / "labels")).items()}


@pytest.mark.slow
@pytest.mark.parametrize("ids", ["names", "falling"])
def test_no_row_is_read_for_many_shards(
    label: Label, photos: Photos, tmp_path: Path, begun: list[int], ids: str
) -> None:
    path = write_parquet(tmp_path / "x.parquet", photos, group=30, id=IDS[ids])
    label(images=str(path), max_bad=0.5, shard_size=9)
    assert len(begun) <= 3 + 2, begun
    assert len(open_labels(tmp_path / "labels")) == COUNT - 1


@pytest.mark.slow
def test_a_folder_that_was_planned_by_id_goes_on_as_it_was(
    label: Label, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: list[int]
) -> None:
    settings = {
        "images": str(write_parquet(tmp_path / "x.parquet", photos, group=30, id=IDS["shuffled"])),
        "max_bad": 0.5,
        "shard_size": 9,
    }
    with monkeypatch.context() as before:
        before.setattr(begin, "planning_order", lambda listing, shard_size: listing.samples)
        label(**settings)
        label(**settings, out=tmp_path / "old")
    assert open_labels(tmp_path / "old").ids == sorted(open_labels(tmp_path / "old").ids)
    finished = content(tmp_path / "labels")
    assert label(**settings).report.images == 0
    assert content(tmp_path / "labels") == finished
    for shard in (1, 4, 9):
        Ledger.open(tmp_path / "old").commit_path(shard).unlink()
    (tmp_path / "old" / "manifest.json").unlink()
    run = label(**settings, out=tmp_path / "old")
    assert run.report.images + run.report.bad == 27
    assert content(tmp_path / "old") == finished
    label(**settings, out=tmp_path / "new")
    new = open_labels(tmp_path / "new")
    assert new.ids != open_labels(tmp_path / "old").ids
    assert labels_of(new) == labels_of(open_labels(tmp_path / "old"))


def test_few_rows_and_ids_that_rise_stay_in_the_order_of_the_ids(tmp_path: Path) -> None:
    photos = {str(number): bytes([number % 256]) for number in range(3000)}
    ids = random.Random(0).sample(range(3000), 3000)
    path = write_parquet(tmp_path / "x.parquet", photos, group=100, id=ids)
    listing = list_samples(str(path))
    by_id = sorted(map(str, ids))
    assert [sample.image_id for sample in listing.samples] == by_id
    assert [sample.image_id for sample in planning_order(listing, 4096)] == by_id
    assert [sample.image_id for sample in planning_order(listing, 100)] == list(map(str, ids))
    few = list_samples(str(path), limit=40)
    assert planning_order(few, 20) == few.samples
    write_parquet(path, photos, group=100, id=[f"{number:04d}" for number in range(3000)])
    rising = list_samples(str(path))
    assert planning_order(rising, 100) == rising.samples


@pytest.mark.slow
def test_what_cannot_be_read_is_planned_beside_its_table(
    label: Label, photos: Photos, tmp_path: Path, begun: list[int]
) -> None:
    ids = [None if number == 7 else name for number, name in enumerate(IDS["shuffled"])]
    write_parquet(tmp_path / "t" / "x.parquet", photos, group=30, sku=ids)
    (tmp_path / "t" / "a#1.parquet").write_bytes(b"none")
    label(images=str(tmp_path / "t"), id_column="sku", max_bad=0.5, shard_size=9, crops=1)
    store = open_labels(tmp_path / "labels")
    assert len(store) == 2 * (COUNT - 2)
    assert len(list(store.quarantine())) == 2 * 3
    assert len(begun) <= 3 + 2, begun


def uris(listing: Listing) -> list[str]:
    return [sample.uri for sample in reading_order(listing.samples, open_source(listing.root))]


def test_tars_and_datasets_are_read_as_they_lie(tmp_path: Path) -> None:
    members = {f"{number}.png": bytes([number]) for number in (5, 40, 3, 11, 1)}
    listing = list_samples(str(write_tar(tmp_path / "x.tar", members)))
    assert uris(listing) == [f"x.tar#{512 + 1024 * place}+1" for place in range(5)]
    cells = [{"bytes": data, "path": None} for data in members.values()]
    saved = write_dataset(tmp_path / "saved", train={"image": cells, "id": list(members)})
    assert uris(list_samples(f"hf:{saved}")) == list("01234")


def test_what_comes_early_waits_outside_memory(tmp_path: Path) -> None:
    places, skipped = list(range(200)), {0, 7, 8, 199}
    random.Random(0).shuffle(places)
    found: list[tuple[str, int]] = []
    tracemalloc.start()
    with InOrder[str](lambda item, arrays: found.append((item, int(arrays[0][-1]))), tmp_path) as rows:
        for place in places:
            if place in skipped:
                rows.skip(place)
            else:
                rows.add(place, f"item {place}", [np.full(1 << 17, place, np.uint16), np.zeros((2, 3))])
        assert list(tmp_path.iterdir()) == []
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert found == [(f"item {place}", place) for place in range(200) if place not in skipped]

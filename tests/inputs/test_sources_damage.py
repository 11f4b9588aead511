"""Tars, tables, lists and datasets that are damaged or odd: what that costs, and where ids come from."""

import base64
import csv
import itertools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.samples import Listing
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.inputs.sources.columns import PATHS_ALONE
from tests.support.contents import read_all
from tests.support.photo_forms import jpeg, photos_in, write_dataset, write_list, write_parquet, write_tar
from tests.support.refused import refused
from tests.support.world import Label, draw_folder

PHOTOS = {f"{number}.png": bytes([number]) * (600 + number) for number in range(9)}


def ids(listing: Listing) -> list[str]:
    return [sample.image_id for sample in listing.samples]


def test_a_name_in_two_tars_puts_the_tar_in_front_of_all(tmp_path: Path) -> None:
    write_tar(tmp_path / "t" / "x.tar", {"1.png": b"one", "2.png": b"two"})
    write_tar(tmp_path / "t" / "in" / "x.tar", {"1.png": b"other"})
    listing = list_samples(str(tmp_path / "t"))
    assert read_all(listing) == {"in/x/1.png": b"other", "x/1.png": b"one", "x/2.png": b"two"}
    assert listing.ids == "members' names, their tar in front"


def test_a_damaged_row_group_costs_the_images_in_it(label: Label, tmp_path: Path) -> None:
    photos = photos_in(draw_folder(tmp_path / "photos", 20))
    path = write_parquet(tmp_path / "x.parquet", photos, group=4)
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(0)
    assert chunk.path_in_schema == "image.bytes"
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + 40 : chunk.data_page_offset + chunk.total_compressed_size - 10] = b"\xff" * (
        chunk.total_compressed_size - 50
    )
    path.write_bytes(data)
    label(images=str(path), max_bad=0.5)
    store = open_labels(tmp_path / "labels")
    assert set(store.ids) == {*list(photos)[:8], *list(photos)[12:]}
    bad = list(store.quarantine())
    assert {row["image_id"] for row in bad} == set(list(photos)[8:12])
    assert {(row["stage"], row["error"]) for row in bad} == {("read", "DamagedTable")}
    assert "x.parquet, row 8: row group 2 is damaged: " in bad[0]["message"]


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True])
def test_a_footer_that_counts_less_rows_loses_none_in_silence(tmp_path: Path, several: bool) -> None:
    """Thrift writes a number as its double; the last two row groups of four and the file's own number are told."""
    path = write_parquet(tmp_path / "t" / "a.parquet", PHOTOS, group=4)
    if several:
        write_parquet(tmp_path / "t" / "b.parquet", {"b": b"B"})
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    hit = 0
    for place in range(start, len(data) - 8):
        if data[place] not in (2 * 9, 2 * 4, 2 * 1):  # as the file and its row groups say
            continue
        path.write_bytes(data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :])
        try:
            found = read_all(list_samples(str(tmp_path / "t" if several else path)))
        except UserError as problem:
            hit += "its footer is damaged: it says" in str(problem)
            continue
        hit += "its footer is damaged: it says" in str(found.get("a.parquet"))
        read = {value for value in found.values() if isinstance(value, bytes)}
        assert set(PHOTOS.values()) <= read or len(found) >= len(PHOTOS) or "a.parquet" in found, place
    assert hit == 4


def test_a_file_of_several_that_is_no_parquet_costs_itself(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t" / "a.parquet", PHOTOS)
    (tmp_path / "t" / "b.parquet").write_bytes(b"PAR1 but no more")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "t" / "c.parquet")
    found = read_all(list_samples(str(tmp_path / "t")))
    assert {name: data for name, data in found.items() if isinstance(data, bytes)} == PHOTOS
    assert str(found["b.parquet"]).startswith("cannot be read: ")
    assert found["c.parquet"] == "expected a column of images; found text"


@pytest.mark.parametrize("form", ["parquet", "hf"])
@pytest.mark.parametrize("ids", [["x", None, "y"], ["x", "x", "y"], None])
def test_a_row_without_an_image_does_not_decide_the_ids(tmp_path: Path, form: str, ids: list[str] | None) -> None:
    cells = [{"bytes": b"A", "path": "a"}, None, {"bytes": b"B", "path": "b"}]
    columns: dict[str, list[Any]] = {"image": cells} | ({"id": ids} if ids else {})
    if form == "hf":
        listing = list_samples(f"hf:{write_dataset(tmp_path / 'x', train=columns)}")
    else:
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        listing = list_samples(str(tmp_path / "x.parquet"))
    assert read_all(listing) == ({"x": b"A", "y": b"B"} if ids else {"a": b"A", "b": b"B"})
    assert listing.notes == {"rows without an image": 1}


def test_rows_without_bytes_and_a_table_that_shrank(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array(
        [{"bytes": b"A", "path": "a"}, {"bytes": None, "path": "/etc/passwd"}, None, {"bytes": b"B"}, {}], kind
    )
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": cells}), path)
    listing = list_samples(str(path))
    missing = "x.parquet, row {}: expected the image's bytes; found {}"
    alone, none = missing.format(1, f"its path alone; {PATHS_ALONE}"), missing.format(4, "none")
    assert listing.notes == {"rows without an image": 1}
    assert list(read_all(listing).values()) == [b"A", alone, b"B", none]
    pq.write_table(pa.table({"image": cells[:1]}), path)
    assert list(read_all(listing).values())[1:] == [
        f"x.parquet, row {row}: there are not so many rows any more" for row in (1, 3, 4)
    ]
    path.write_bytes(b"")
    assert "x.parquet: " in str(next(iter(read_all(listing).values())))


@pytest.mark.parametrize(
    ("columns", "asked", "expected", "said"),
    [
        ({"id": [3, 1, 2], "key": ["c", "a", "b"]}, None, ["1", "2", "3"], "the column id"),
        ({"id": [1, 1, 2], "key": ["c", "a", "b"]}, None, ["a", "b", "c"], "the column key"),
        ({"id": [1, None, 2]}, None, ["p0", "p1", "p2"], "the column image.path"),
        ({"image_id": [b"x", b"y", b"z"]}, None, ["x", "y", "z"], "the column image_id"),
        ({"id": [0.5, 1.5, 2.5], "sku": ["s", "t", "u"]}, "sku", ["s", "t", "u"], "the column sku"),
        ({"sku": ["s", "t", "s"]}, "sku", ["s", "t"], "the column sku"),
    ],
)
def test_where_ids_come_from(
    tmp_path: Path, columns: dict[str, list[Any]], asked: str | None, expected: list[str], said: str
) -> None:
    path = write_parquet(tmp_path / "x.parquet", {f"p{n}": bytes([n]) for n in range(3)}, **columns)
    listing = list_samples(str(path), id_column=asked)
    assert ids(listing) == expected
    assert listing.ids == said


def test_row_numbers_sort_as_rows_do_and_name_their_file(tmp_path: Path) -> None:
    photos = {f"{number}": bytes([number]) for number in range(12)}
    one = write_parquet(tmp_path / "t" / "a.parquet", photos, plain=True, text=["x"] * 12)
    assert list(read_all(list_samples(str(one))).values()) == list(photos.values())
    assert ids(list_samples(str(one)))[11] == "000000011"
    write_parquet(tmp_path / "t" / "b.parquet", photos, plain=True, text=["x"] * 12)
    listing = list_samples(f"{tmp_path}/t/*.parquet")
    assert listing.ids == "row numbers"
    assert ids(listing)[12] == "b.parquet/000000000"
    assert list(read_all(listing).values()) == [*photos.values(), *photos.values()]


def test_an_id_that_is_missing_costs_that_image(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", {"a": b"A", "b": b"B"}, sku=["s", None])
    missing = {"x.parquet#1": "expected an id in the column 'sku'; found none"}
    assert read_all(list_samples(str(path), id_column="sku")) == {"s": b"A"} | missing
    listed = write_list(tmp_path / "l.csv", [{"path": "a.png", "sku": "s"}, {"path": "b.png", "sku": ""}])
    problems = [sample.problem for sample in list_samples(str(listed), id_column="sku").samples]
    assert sorted(filter(None, problems)) == ["expected an id; found none"]


@pytest.mark.slow
def test_paths_without_bytes_are_told_and_what_is_advised_works(tmp_path: Path) -> None:
    """`to_parquet` of a dataset of files keeps their paths alone."""
    import datasets

    photos = photos_in(draw_folder(tmp_path / "photos", 3))
    paths = [str(tmp_path / "photos" / name) for name in photos]
    rows = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "x" / "train.parquet")
    folder = tmp_path / "x"
    for images, found in ((folder, "found its path alone"), (f"hf:{folder}", "a file outside the dataset's folder")):
        for problem in read_all(list_samples(str(images))).values():
            assert found in str(problem)
            assert str(problem).endswith(PATHS_ALONE)
    write_list(tmp_path / "list.csv", [{"path": path} for path in paths])
    listing = list_samples(str(tmp_path / "list.csv"), tmp_path / "photos")
    assert list(read_all(listing).values()) == list(photos.values())
    rows.save_to_disk(tmp_path / "saved")
    assert set(read_all(list_samples(f"hf:{tmp_path}/saved")).values()) == set(photos.values())


def test_lists_with_odd_rows(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbfn,path\r\n1,"a, b.png"\r\n2,\xe9.png\r\n3\r\n\r\n4,c::#?.png\r\n')
    samples = list_samples(str(tmp_path / "x.csv")).samples
    assert [sample.image_id for sample in samples if not sample.problem] == ["a, b.png", "c::#?.png"]
    assert {sample.image_id for sample in samples if sample.problem} == {"\\xe9.png", "None"}
    (tmp_path / "x.txt").write_bytes(b"a b.png \n\n\xff.png\n")
    listing = list_samples(str(tmp_path / "x.txt"))
    assert [(sample.image_id, bool(sample.problem)) for sample in listing.samples] == [
        ("\\xff.png", True), ("a b.png ", False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("opened.tsv", ['a.png\t"A hammerhead', "b.png\ta cock"]),
        ("said.tsv", ['a.png\t"Jaws", he said', "b.png\ta cock"]),
        ("each.tsv", ['a.png\t"one', 'b.png\t"two', 'c.png\t"three', 'd.png\t"four']),
        ("path.csv", ['"a.png,1', "b.png,2"]),
    ],
)
def test_a_quote_swallows_no_rows(tmp_path: Path, name: str, rows: list[str]) -> None:
    between = "," if name.endswith("csv") else "\t"
    (tmp_path / name).write_text("\n".join([f"path{between}caption", *rows]) + "\n")
    with refused(match=rf"{name}: line \d: expected .SV; .*; put a field that holds a quote into quotes"):
        list_samples(str(tmp_path / name))


def test_a_field_in_quotes_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('path\tcaption\na.png\t"two\nlines, ""Jaws"""\nb.png\tit\'s "fine"\n')
    assert [sample.image_id for sample in list_samples(str(tmp_path / "x.tsv")).samples] == ["a.png", "b.png"]


def test_a_field_may_have_any_width_and_the_limit_of_the_process_stays(tmp_path: Path) -> None:
    limit, paths = csv.field_size_limit(), [tmp_path / f"{number}.csv" for number in range(4)]
    for path in paths:
        path.write_text('path,text\na.png,short\nb.png,"' + "word " * 30_000 + '"\nc.png,' + "x" * 150_000 + "\n")
    with ThreadPoolExecutor(4) as pool:
        for listing in pool.map(list_samples, map(str, paths)):
            assert [sample.image_id for sample in listing.samples] == ["a.png", "b.png", "c.png"]
    with pytest.raises(UserError, match=r"columns\.csv: expected a column"):
        list_samples(str(write_list(tmp_path / "columns.csv", [{"a": "b"}])))
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("name", ["mm.tsv", "mm.csv", "mm.txt", "mm.parquet", "url.csv"])
def test_pictures_as_text_are_named_and_are_read_when_decoded(tmp_path: Path, name: str) -> None:
    """MMBench's tables hold them, with the index of another row in place of a picture that is there already."""
    photo, path = jpeg(), tmp_path / name
    column = "path" if path.suffix == ".txt" else "image"
    text = ("data:image/jpeg;base64," if name == "url.csv" else "") + base64.b64encode(photo).decode()
    cells = ["1", text]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"image": cells}), path)
    elif path.suffix == ".txt":
        path.write_text("\n".join(cells))
    else:
        write_list(path, [{"index": str(number), "image": cell} for number, cell in enumerate(cells)])
    said = f"{name}: expected paths in the column '{column}'; found a picture as base64 text in row 2; decode"
    with pytest.raises(UserError, match=re.escape(said)) as error:
        list_samples(str(path))
    assert len(str(error.value)) < 400
    pq.write_table(pa.table({"image": [photo]}), tmp_path / "decoded.parquet")
    assert list(read_all(list_samples(str(tmp_path / "decoded.parquet"))).values()) == [photo]
    (tmp_path / "x.json").write_text(json.dumps([{"image": text, "conversations": []}]))
    (bad,) = list_samples(str(tmp_path / "x.json")).samples
    assert "found a picture as base64 text" in (bad.problem or "")
    assert len(bad.image_id) < 100


def test_the_ids_and_splits_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [{"bytes": name.encode(), "path": f"{name}.png"} for name in "cab"]
    saved = write_dataset(tmp_path / "saved", one={"image": cells, "id": list("xyz")}, two={"image": cells})
    with pytest.raises(UserError, match=r"has the splits one, two; give one: hf:.*saved:one"):
        list_samples(f"hf:{saved}")
    assert read_all(list_samples(f"hf:{saved}:one")) == {"x": b"c", "y": b"a", "z": b"b"}
    listing = list_samples(f"hf:{saved}:two")
    assert read_all(listing) == {"a.png": b"a", "b.png": b"b", "c.png": b"c"}
    assert listing.ids == "the images' own path"
    with monkeypatch.context() as patch:
        patch.setattr("datasets.IterableDataset.__iter__", None)  # its rows are counted without a pass over them
        stream = list_samples(f"hf:{saved}:two", streaming=True, limit=2)
    assert read_all(stream) == {"000000000": b"c", "000000001": b"a"}
    assert (stream.streamed, stream.ids) == (True, "row numbers")


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_configuration_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "d"
    for name in ("a", "b"):
        write_parquet(folder / name / "test.parquet", dict.fromkeys("xyz", name.encode()))
    configs = "".join(f"- {{config_name: {name}, data_dir: {name}}}\n" for name in ("a", "b"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for asked in (f"hf:{folder}", f"hf:{folder}:test"):
        with refused(f"hf:{folder}: has the configurations a, b; give one: hf:{folder}:a:test"):
            list_samples(asked, streaming=streaming)
    assert read_all(list_samples(f"hf:{folder}:b:test", streaming=streaming)) == dict.fromkeys("xyz", b"b")
    monkeypatch.setattr(datasets, "get_dataset_config_names", Mock(side_effect=ConnectionError("away")))
    with refused(f"hf:{folder}: cannot be loaded: Config name is missing"):
        list_samples(f"hf:{folder}:test", streaming=streaming)


def test_footers_of_a_stream_are_read_at_once_as_far_as_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        write_parquet(tmp_path / "d" / f"train-{number:02}.parquet", {"a.png": b"A"}, label=["1"])
    footer, together, numbers, begun = pq.read_metadata, Barrier(2), itertools.count(), []

    def watched(file: Any) -> Any:
        begun.append(file)
        if next(numbers) < 2:
            together.wait(timeout=100)
        return footer(file)

    monkeypatch.setattr(pq, "read_metadata", watched)
    assert len(list_samples(f"hf:{tmp_path / 'd'}:train", limit=2, streaming=True).samples) == 2
    assert 2 <= len(begun) < 50
    assert len(list_samples(f"hf:{tmp_path / 'd'}:train", streaming=True).samples) == 50


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_stream_is_read_to_its_end_whatever_its_card_says(tmp_path: Path, form: str) -> None:
    (folder := tmp_path / "d").mkdir()
    if form == "parquet":
        write_parquet(folder / "train.parquet", dict.fromkeys("xyz", b"A"), label=["1", "2", "3"])
    else:
        (folder / "train.jsonl").write_text('{"image": {"bytes": null, "path": "/x"}}\n' * 3)
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - {name: image, dtype: image}\n"
        "  splits:\n  - {name: train, num_bytes: 1, num_examples: 2}\n---\n"
    )
    for limit, count in ((None, 3), (2, 2)):
        assert len(list_samples(f"hf:{folder}:train", limit=limit, streaming=True).samples) == count


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["ids", "images"])
def test_an_offset_of_an_arrow_file_that_is_damaged_ends_no_process(
    label: Label, tmp_path: Path, column: str, streaming: bool
) -> None:
    """Arrow takes offsets as they stand: one beyond the file's end is read there."""
    photos = photos_in(draw_folder(tmp_path / "photos", 6))
    names = [f"{'n' * number}.png" for number in range(1, 7)]
    cells = [{"bytes": data, "path": None} for data in photos.values()]
    saved = write_dataset(tmp_path / "d", train={"image": cells, "image_id": names})
    lengths = [len(name) for name in names] if column == "ids" else [len(data) for data in photos.values()]
    places = np.cumsum([0, *lengths]).astype("<i4")
    (arrow,) = saved.rglob("*.arrow")
    data = bytearray(arrow.read_bytes())
    data[data.index(places.tobytes()) + 4 * 3 + 3] = 0x7F
    arrow.write_bytes(data)
    if column == "ids":
        with pytest.raises(UserError, match=r"d:train: cannot be read: .*[Oo]ffset"):
            list_samples(f"hf:{saved}:train", streaming=streaming)
        return
    label(images=f"hf:{saved}:train", streaming=streaming, max_bad=1)
    store = open_labels(tmp_path / "labels")
    bad = {row["image_id"]: row["error"] for row in store.quarantine()}
    assert bad == {names[2]: "DamagedTable", names[3]: "DamagedTable"}
    assert sorted(store) == sorted(set(names) - set(bad))

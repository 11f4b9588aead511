"""Tars, tables, lists and datasets that are damaged, odd, empty or hostile: what they cost, and what is said."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sea_pipeline import open_labels
from sea_pipeline.errors import UserError
from sea_pipeline.label_run import StageRun
from sea_pipeline.pixels import BadImageError
from sea_pipeline.samples import Listing
from sea_pipeline.sources import list_samples, open_source
from tests.photo_forms import photos_in, write_list, write_parquet, write_tar
from tests.world import draw_folder

Label = Callable[..., StageRun]
PHOTOS = {f"{number}.png": bytes([number]) * (600 + number) for number in range(9)}


def ids(listing: Listing) -> list[str]:
    return [sample.image_id for sample in listing.samples]


def contents(listing: Listing) -> dict[str, bytes | str]:
    """What every listed image reads as, or why not."""
    source = open_source(listing.root)
    found: dict[str, bytes | str] = {}
    for sample in listing.samples:
        try:
            found[sample.image_id] = sample.problem or source.read(sample.uri)
        except BadImageError as error:
            found[sample.image_id] = error.message if error.stage == "read" else error.stage
    return found


def tar_of(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
            else:
                tar.addfile(member)
    return path


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_name_in_two_tars_puts_the_tar_in_front_of_all(tmp_path: Path) -> None:
    write_tar(tmp_path / "t" / "x.tar", [("1.png", b"one"), ("2.png", b"two")])
    write_tar(tmp_path / "t" / "in" / "x.tar", [("1.png", b"other")])
    listing = list_samples(str(tmp_path / "t"))
    assert contents(listing) == {"in/x/1.png": b"other", "x/1.png": b"one", "x/2.png": b"two"}
    assert listing.ids == "members' names, their tar in front"


def test_odd_members_of_a_tar(tmp_path: Path) -> None:
    long = "d/" * 100 + "long name ::#.png"
    path = tar_of(
        tmp_path / "x.tar",
        ("./a.png", b"A"), ("b.png", b"old"), ("notes.txt", b"x"), (long, b"L"), ("b.png", b"new"), ("empty.png", b""),
        link("hard.png", "./a.png"), link("soft.png", "a.png", tarfile.SYMTYPE), ("../../up.png", b"up"),
    )  # fmt: skip
    listing = list_samples(str(path))
    expected = {"a.png": b"A", "b.png": b"new", long: b"L", "empty.png": b"", "hard.png": b"A", "../../up.png": b"up"}
    assert contents(listing) == expected
    assert listing.notes == {
        "files without an image's suffix": 2,
        "members that a later one of the same tar replaces": 1,
    }


def test_a_member_whose_name_is_not_utf8_is_a_problem_of_that_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.png", b"A"), (os.fsdecode(b"\xe9.png"), b"B")])
    found = contents(list_samples(str(path)))
    assert found == {"a.png": b"A", "\\xe9.png": "the name of the member is not UTF-8; rename it"}


@pytest.mark.parametrize(
    ("cut", "whole", "said"),
    [
        (
            1536 + 512 + 1,
            1,
            {"1.png": "x.tar ends after 1 of the image's 601 bytes", "x.tar": "behind its first 2 images"},
        ),
        (1536 + 100, 1, {"x.tar": "damaged behind its first 1 images"}),
        (2 * 1536, 2, {"x.tar": "it has no end marker, so it may have been cut off"}),
        (3 * 1536 - 5, 3, {"x.tar": "damaged behind its first 3 images"}),
    ],
)
def test_a_tar_that_has_been_cut_off_costs_what_is_gone(
    tmp_path: Path, cut: int, whole: int, said: dict[str, str]
) -> None:
    """Members of 600 and a few bytes: each takes a header of 512 and 1,024 of data."""
    path = write_tar(tmp_path / "x.tar", list(PHOTOS.items()))
    path.write_bytes(path.read_bytes()[:cut])
    found = contents(list_samples(str(path)))
    good = {name: found.pop(name) for name in list(PHOTOS)[:whole]}
    assert good == {name: PHOTOS[name] for name in good}
    assert found.keys() == said.keys()
    for name, expected in said.items():
        assert expected in str(found[name])


def test_a_header_that_is_overwritten_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", list(PHOTOS.items()))
    data = bytearray(path.read_bytes())
    data[4 * 1536 : 4 * 1536 + 512] = b"\xff" * 512
    path.write_bytes(data)
    found = contents(list_samples(str(path)))
    assert list(found) == [*list(PHOTOS)[:4], "x.tar"]
    assert found["x.tar"] == "damaged behind its first 4 images: no header at byte 6,144"


def test_a_damaged_tar_costs_its_images_and_not_the_run(label: Label, tmp_path: Path) -> None:
    photos = photos_in(draw_folder(tmp_path / "photos", 8))
    names = list(photos)
    write_tar(tmp_path / "t" / "0.tar", [(name, photos[name]) for name in names[:4]])
    cut = write_tar(tmp_path / "t" / "1.tar", [(name, photos[name]) for name in names[4:]])
    assert all(len(data) <= tarfile.BLOCKSIZE for data in photos.values())
    cut.write_bytes(cut.read_bytes()[: 2 * 2 * tarfile.BLOCKSIZE])
    (tmp_path / "t" / "2.tar").write_bytes(b"no tar at all" * 100)
    label(images=str(tmp_path / "t"), max_bad=0.9)
    store = open_labels(tmp_path / "labels")
    bad = {row["image_id"]: row["stage"] for row in store.quarantine()}
    assert bad == {"1.tar": "list", "2.tar": "list"}
    assert store.ids == names[:6]


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


def test_a_file_of_several_that_is_no_parquet_costs_itself(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t" / "a.parquet", PHOTOS)
    (tmp_path / "t" / "b.parquet").write_bytes(b"PAR1 but no more")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "t" / "c.parquet")
    found = contents(list_samples(str(tmp_path / "t")))
    assert {name: data for name, data in found.items() if isinstance(data, bytes)} == PHOTOS
    assert str(found["b.parquet"]).startswith("cannot be read: ")
    assert found["c.parquet"] == "expected a column of images; found text"


def test_rows_without_bytes_and_a_table_that_shrank(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": b"A", "path": "a"}, {"bytes": None, "path": "/etc/passwd"}, None], kind)
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": cells}), path)
    listing = list_samples(str(path))
    missing = "expected the image's bytes; found none"
    assert list(contents(listing).values()) == [b"A", f"x.parquet, row 1: {missing}", f"x.parquet, row 2: {missing}"]
    pq.write_table(pa.table({"image": cells[:1]}), path)
    assert list(contents(listing).values())[1:] == [
        f"x.parquet, row {row}: there are not so many rows any more" for row in (1, 2)
    ]
    path.write_bytes(b"")
    assert "x.parquet: " in str(next(iter(contents(listing).values())))


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
    assert list(contents(list_samples(str(one))).values()) == list(photos.values())
    assert ids(list_samples(str(one)))[11] == "000000011"
    write_parquet(tmp_path / "t" / "b.parquet", photos, plain=True, text=["x"] * 12)
    listing = list_samples(f"{tmp_path}/t/*.parquet")
    assert listing.ids == "row numbers"
    assert ids(listing)[12] == "b.parquet/000000000"
    assert list(contents(listing).values()) == [*photos.values(), *photos.values()]


def test_an_id_that_is_missing_costs_that_image(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", {"a": b"A", "b": b"B"}, sku=["s", None])
    assert contents(list_samples(str(path), id_column="sku")) == {
        "s": b"A",
        "x.parquet#1": "expected an id in the column 'sku'; found none",
    }
    listed = write_list(tmp_path / "l.csv", [{"path": "a.png", "sku": "s"}, {"path": "b.png", "sku": ""}])
    problems = [sample.problem for sample in list_samples(str(listed), id_column="sku").samples]
    assert sorted(filter(None, problems)) == ["expected an id; found none"]


@pytest.mark.parametrize(
    "path", ["../up.png", "/etc/passwd", "a/../../up.png", "s3://b/x.png", "http://h/x.png", "a\0"]
)
def test_a_path_in_a_list_that_leaves_the_root_costs_that_image(tmp_path: Path, path: str) -> None:
    (tmp_path / "list.txt").write_text(f"good.png\n{path}\n")
    problems = {sample.image_id: sample.problem for sample in list_samples(str(tmp_path / "list.txt")).samples}
    assert problems.pop("good.png") is None
    assert all(problems.values())
    assert len(problems) == 1


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


def bad_inputs(folder: Path) -> dict[str, str]:
    """What is asked for, and what must be said."""
    (folder / "empty").mkdir()
    for name in ("empty.csv", "empty.tar", "empty.parquet", "empty.txt", "x.zip", "x.tar.gz"):
        (folder / name).write_bytes(b"")
    (folder / "columns.csv").write_text("a,b\n1,2\n")
    (folder / "huge.csv").write_text("path\n" + "x" * 200_000)
    (folder / "zipped.tar").write_bytes(b"\x1f\x8b" + b"x" * 600)
    (folder / "no.parquet").write_text("no")
    (folder / "mixed").mkdir()
    (folder / "mixed" / "a.tar").touch()
    (folder / "mixed" / "b.parquet").touch()
    pq.write_table(pa.table({"text": ["x"]}), folder / "text.parquet")
    pq.write_table(pa.table({"one": [b"x"], "two": [b"y"]}), folder / "two.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), folder / "none.parquet")
    tar_of(folder / "none.tar", ("a.txt", b"x"))
    return {
        "empty": "expected images, found none",
        "empty.csv": "empty.csv: expected a column called path, image, file_name or uri; found nothing",
        "empty.txt": "expected images, found none",
        "empty.tar": "expected a .tar with images, not compressed",
        "zipped.tar": "expected a .tar with images, not compressed",
        "empty.parquet": "empty.parquet: expected a Parquet file",
        "no.parquet": "no.parquet: expected a Parquet file",
        "text.parquet": "text.parquet: expected a column called path, image, file_name or uri; found text",
        "two.parquet": "expected one column of images, or one called 'image'; found one, two",
        "none.parquet": "expected images, found none",
        "none.tar": "expected images, found none (left out: files without an image's suffix: 1)",
        "columns.csv": "found a, b",
        "huge.csv": "huge.csv: line 2: expected CSV; field larger than field limit",
        "x.zip": "expected a folder, a .json",
        "x.tar.gz": "expected a folder, a .json",
        "mixed": "holds .parquet and .tar files; give one kind",
        "*.tgz": "expected files; found none called *.tgz",
        "{0..2}.tar": "expected files; found none called 0.tar",
        "*.*": "expected a folder, a .json",
        "nothing": "found nothing there",
        "memory://nothing": "memory://nothing: expected images, found none",
        "memory://nothing.csv": "memory:///nothing.csv: expected a file; found nothing there",
        "gopher://x/y": "Protocol not known: gopher",
        "hf:nobody/nothing": "cannot be loaded: Couldn't reach 'nobody/nothing' on the Hub",
    }


def test_every_bad_input_is_one_clear_line(tmp_path: Path, command: Any, words: Path) -> None:
    for name, expected in bad_inputs(tmp_path).items():
        asked = name if ":" in name else f"{tmp_path}/{name}"
        code, _, said = command(
            "label", "--images", asked, "--wordlist", words, "--top-n", 3, "--out", tmp_path / "out"
        )
        line = " ".join(said.split())
        assert code == 1, name
        assert expected in line, (name, line)
        assert line.startswith("error: "), line
        assert "Traceback" not in line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"streaming": True}, "--streaming: goes with --images hf:NAME"),
        ({"id_column": "id"}, "--id-column id: goes with tables"),
        ({"image_root": "x"}, "--image-root goes with a list of images"),
        ({"images": "list.json", "id_column": "id"}, "goes with tables; LLaVA's ids are what `image` says"),
        ({"images": "list.txt", "image_root": "nowhere"}, "nowhere: expected a folder; found none there"),
        ({"images": "list.txt", "id_column": "sku"}, "expected a column 'sku', which --id-column asks for; found path"),
        (
            {"images": "t.parquet", "id_column": "sku"},
            "expected a column 'sku', which --id-column asks for; found image",
        ),
        ({"images": "hf:saved", "id_column": "sku"}, "expected a column 'sku', which --id-column asks for"),
        ({"images": "hf:saved:test"}, "cannot be loaded: no split 'test'"),
        ({"images": "hf:saved", "image_root": "x"}, "--image-root x: goes with a list of images"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / "photos", 1)
    Path("list.json").write_text(json.dumps([{"image": "a.png", "conversations": []}]))
    Path("list.txt").write_text("a.png\n")
    write_parquet(Path("t.parquet"), PHOTOS)
    hub_folder(Path("saved"), train={"image": [{"bytes": b"A", "path": "a.png"}]})
    with pytest.raises(UserError) as error:
        list_samples(**({"images": "photos"} | settings))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def hub_folder(path: Path, **splits: dict[str, list[Any]]) -> Path:
    import datasets

    parts = {}
    for name, columns in splits.items():
        features = {column: datasets.Value("string") for column in columns} | {"image": datasets.Image()}
        parts[name] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.DatasetDict(parts).save_to_disk(path)
    return path


def test_the_ids_and_splits_of_datasets(tmp_path: Path) -> None:
    cells = [{"bytes": name.encode(), "path": f"{name}.png"} for name in "cab"]
    saved = hub_folder(tmp_path / "saved", one={"image": cells, "id": list("xyz")}, two={"image": cells})
    with pytest.raises(UserError, match=r"has the splits one, two; give one: hf:.*saved:one"):
        list_samples(f"hf:{saved}")
    assert contents(list_samples(f"hf:{saved}:one")) == {"x": b"c", "y": b"a", "z": b"b"}
    listing = list_samples(f"hf:{saved}:two")
    assert contents(listing) == {"a.png": b"a", "b.png": b"b", "c.png": b"c"}
    assert listing.ids == "the images' own path"
    stream = list_samples(f"hf:{saved}:two", streaming=True, limit=2)
    assert contents(stream) == {"000000000": b"c", "000000001": b"a"}
    assert (stream.streamed, stream.ids) == (True, "row numbers")


def test_a_dataset_reads_no_file_outside_its_folder(tmp_path: Path) -> None:
    import datasets

    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    inside = tmp_path / "saved" / "inside.png"
    path = hub_folder(tmp_path / "saved", train={"image": [{"bytes": b"A", "path": "a"}]})
    inside.write_bytes(b"inside")
    cells = [{"bytes": None, "path": str(secret)}, {"bytes": None, "path": str(inside)}, {"bytes": None, "path": None}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (arrow,) = (path / "train").glob("*.arrow")
    with pa.OSFile(str(arrow), "wb") as file:
        schema = datasets.Features({"image": datasets.Image()}).arrow_schema
        with pa.ipc.new_stream(file, schema) as writer:
            writer.write_table(pa.table({"image": pa.array(cells, kind)}, schema=schema))
    for streaming in (False, True):
        found = list(contents(list_samples(f"hf:{path}", streaming=streaming)).values())
        assert found[0] == "the row names a file outside the dataset's folder"
        assert found[1] == b"inside"
        assert "found neither" in str(found[2])


def test_folders_that_look_like_patterns_are_folders(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "a[1]{0..3}*", 3)
    assert ids(list_samples(str(folder))) == ["000.png", "a/001.png", "b/002.png"]
    assert list_samples(f"file://{folder}").root == str(folder)
    data = hashlib.sha256(photos_in(folder)["000.png"]).digest()
    assert hashlib.sha256(open_source(str(folder)).read("000.png")).digest() == data

"""Listing images: folders, LLaVA's JSON as it streams, and inputs and options that are refused in one line."""

import io
import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs import json_array
from sea_pipeline.inputs.json_array import JsonNumbers
from sea_pipeline.inputs.llava_json import images_of, record_name, records
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.inputs.sources import list_samples
from tests.support.contents import read_all
from tests.support.photo_forms import write_dataset, write_parquet, write_tar
from tests.support.programs import labelling
from tests.support.refused import refused, refuses
from tests.support.world import draw_folder


def ids(listing: Any) -> list[str]:
    return [sample.image_id for sample in listing.samples]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def llava(path: Path, *images: Any) -> Path:
    rows = [{"id": "same", "image": image, "conversations": []} for image in images]
    text = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(text)
    return path


def test_a_folder_is_listed_by_relative_path_and_sorted(tmp_path: Path) -> None:
    touch(tmp_path / "b.JPG", tmp_path / "a" / "z.png", tmp_path / "a" / "c" / "x.webp", tmp_path / "notes.txt")
    listing = list_samples(str(tmp_path))
    assert listing.samples == [Sample(name, name) for name in ("a/c/x.webp", "a/z.png", "b.JPG")]
    assert listing.notes == {"files without an image's suffix": 1}


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_files_of_images_beside_images_are_counted_by_their_kind(tmp_path: Path, suffix: str) -> None:
    """As `assets/banner.png` beside the shards of a data set."""
    folder = tmp_path / "all"
    touch(folder / "banner.png", folder / f"0.{suffix}", folder / "data" / f"1.{suffix}", folder / "2.tar.gz")
    touch(folder / "notes.txt", folder / "icon.svg", folder / "banner.CR3", folder / "photo.jxl")
    listing = list_samples(str(folder))
    assert ids(listing) == ["banner.png", "photo.jxl"]
    assert listing.notes == {
        f".{suffix} files, not read beside images": 2,
        "compressed tars, which are not read": 1,
        "files without an image's suffix": 1,
        ".svg pictures, which are not read": 1,
        ".cr3 pictures, which are not read": 1,
    }


def test_compressed_tars_beside_tars_are_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards" / "0.tar", {"a.png": b"1"})
    touch(tmp_path / "shards" / "1.tar.gz", tmp_path / "shards" / "2.tgz")
    assert list_samples(str(tmp_path / "shards")).notes["compressed tars, which are not read"] == 2


def test_an_id_of_several_images_is_refused_where_their_files_have_names(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,album\na.jpg,7\n./a.jpg,7\nb.jpg,7\nc.jpg,8\n")
    said = "expected a name of its own for every image; found '7' for 'a.jpg' and 'b.jpg'; give --id-column a column"
    with refused(said, match=r"l\.csv"):
        list_samples(str(tmp_path / "l.csv"), id_column="album")


def test_an_id_of_several_rows_of_a_table_is_counted(tmp_path: Path) -> None:
    """They may hold the same image, as tables of questions do."""
    table = pa.table({"image": [b"1", b"2", b"3"], "album": [7, 7, 8]})
    pq.write_table(table, tmp_path / "t.parquet")
    listing = list_samples(str(tmp_path / "t.parquet"), id_column="album")
    assert listing.notes == {"rows whose id an earlier row has": 1}
    assert ids(listing) == ["7", "8"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.txt", "l.json", "l.jsonl"])
def test_a_list_of_two_bytes_a_character_says_how_to_convert_it(tmp_path: Path, name: str, encoding: str) -> None:
    """Excel calls one of them Unicode text."""
    rows = {"l.txt": "a.jpg\nb.jpg\n", "l.json": '[{"image": "a.jpg"}]', "l.jsonl": '{"image": "a.jpg"}\n'}
    path = tmp_path / name
    path.write_bytes(rows.get(name, "path\na.jpg\n").encode(encoding))
    found = encoding if encoding[-2:] not in ("le", "be") else encoding[:6] + encoding[-2:]
    message = f"expected UTF-8, found {found}; convert it with: iconv -f {found} -t utf-8"
    with refused(message, match=re.escape(name)):
        list_samples(str(path))
    if name in ("l.json", "l.jsonl"):
        with refused(message, match=re.escape(name)):
            list(records(path))


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    touch(photos / "a" / "x.png", tmp_path / "elsewhere" / "y.png")
    (photos / "a" / "up").symlink_to(photos)
    (photos / "self").symlink_to("self")
    (photos / "out").symlink_to("..")
    (photos / "b").symlink_to(tmp_path / "elsewhere")
    listing = list_samples(str(photos))
    assert ids(listing) == ["a/x.png", "b/y.png"]
    assert listing.notes["links that lead back to a folder above them"] == 2


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_llava_rows_are_joined_to_the_image_root(tmp_path: Path, suffix: str) -> None:
    data = llava(tmp_path / f"data{suffix}", "b/2.jpg", None, "a/1.jpg", ["c/3.jpg", "a/1.jpg"], "x/../b/9.jpg")
    listing = list_samples(str(data), tmp_path)
    assert listing.root == str(tmp_path)
    assert listing.samples == [
        Sample("a/1.jpg", "a/1.jpg"),
        Sample("b/2.jpg", "b/2.jpg"),
        Sample("c/3.jpg", "c/3.jpg"),
        Sample("x/../b/9.jpg", "b/9.jpg"),
    ]
    assert listing.notes == {"text-only entries": 1, "repeated entries of an image": 1}
    assert list_samples(str(data), tmp_path, limit=2).samples == listing.samples[:2]


@pytest.mark.parametrize(
    "image",
    ["../up.jpg", "/etc/passwd", "a/../../up.jpg", "s3://b/x", "http://h/x", "a\0b.jpg", "\ud800.jpg", 7, "",
     "x" * 40_000],
)  # fmt: skip
def test_a_path_that_leaves_the_root_or_is_none_costs_that_picture(tmp_path: Path, image: Any) -> None:
    first, second = list_samples(str(llava(tmp_path / "data.jsonl", "zzz.jpg", image))).samples
    bad, good = (second, first) if first.problem is None else (first, second)
    assert bad.problem
    assert good == Sample("zzz.jpg", "zzz.jpg")
    assert len(bad.image_id.encode("utf-8")) < 100


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("coco.json", '{"images": []}', "an array of records; found an object"),
        ("lines.json", '{"image": "a.jpg"}\r\n{"image": "b.jpg"}\r\n', "is JSONL: rename it to .jsonl"),
        ("joined.json", '{\n"image": "a.jpg"\n}\n{\n"image": "b.jpg"\n}\n', "found an object$"),
        ("empty.json", "", "an empty file"),
        ("other.json", '[{"file_name": "a.jpg", "height": 3}]', "entry 1: expected a LLaVA record"),
        ("strings.json", '["a.jpg"]', "entry 1"),
        ("nested.json", '[[{"image": "a.jpg"}]]', "found list$"),
        ("cut.json", '[{"image": "a.jpg", "conversations": []}, {"ima', "after entry 1"),
        ("comma.json", '[{"image": "a.jpg",}]', "invalid object key (must be a string)"),
        (
            "latin.json",
            b'[{"image": "\xe9.jpg", "conversations": []}]',
            "after entry 0: lexical error: invalid bytes in UTF8 string.",
        ),
        ("broken.jsonl", '{"image": "a.jpg", "conversations": []}\n\n{"image"\n', "line 3"),
        ("deep.jsonl", "[" * 200_000, "line 1: expected one JSON object"),
        ("list.jsonl", "[1, 2]\n", "line 1: expected a LLaVA record"),
        ("array.jsonl", '[\n {"image": "a.jpg"}\n]\n', "; if the file is one array, end its name with .json$"),
        ("text.json", '[{"conversations": []}]', "text-only entries: 1"),
        ("photo.doc", "x", "expected a folder, a .json, .jsonl"),
        ("photo.jpg", "x", "found photo.jpg; give the folder that images lie in, or a list of them"),
    ],
)
def test_a_file_that_is_not_llavas_is_a_clear_line(tmp_path: Path, name: str, text: str | bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        list_samples(str(path))
    assert name in str(error.value)
    assert expected in f"{error.value}$"
    assert "\n" not in str(error.value)
    assert "(right here)" not in str(error.value)


def test_a_byte_order_mark_is_no_part_of_the_json(tmp_path: Path) -> None:
    for suffix in (".json", ".jsonl"):
        data = llava(tmp_path / f"data{suffix}", "a.jpg")
        data.write_bytes(b"\xef\xbb\xbf" + data.read_bytes())
        assert ids(list_samples(str(data), tmp_path)) == ["a.jpg"]


def test_a_problem_never_takes_the_place_of_a_good_image(tmp_path: Path) -> None:
    first, second = list_samples(str(llava(tmp_path / "data.json", 5, "5", 5)), tmp_path).samples
    assert first == Sample("5", "5")
    assert second.image_id == "5"
    assert second.problem


def test_the_packaged_photos_are_there() -> None:
    listing = list_samples(None)
    assert len(listing.samples) == 11
    assert all((Path(listing.root) / sample.uri).is_file() for sample in listing.samples)


ROW = {"id": 1, "image": "a.jpg", "conversations": [{"from": "human", "value": "Hi"}]}


def test_records_come_with_the_number_of_their_entry_or_line(tmp_path: Path) -> None:
    array, lines = tmp_path / "data.json", tmp_path / "data.jsonl"
    array.write_text(json.dumps([ROW, ROW]))
    lines.write_text(f"\n{json.dumps(ROW)}\n\n{json.dumps(ROW)}")
    assert list(records(array)) == [(1, ROW), (2, ROW)]
    assert list(records(lines)) == [(2, ROW), (4, ROW)]
    assert (record_name(array, 2), record_name(lines, 4)) == ("entry 2", "line 4")


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_record_is_there_before_the_file_has_been_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    row = json.dumps(ROW)
    path.write_text(
        f"[{row},\n{row}\n" + '"broken' * 50_000 if name == "data.json" else f"{row}\n" + '{"broken' * 50_000
    )
    found = records(path)
    assert next(found) == (1, ROW)
    with pytest.raises(UserError, match=name):
        list(found)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: cannot be read: No such file"):
        next(records(tmp_path / "absent.json"))
    (tmp_path / "x.json.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=r"found something else; give a \.json or \.jsonl file, and unpack it first"):
        next(records(tmp_path / "x.json.gz"))


@pytest.mark.parametrize("row", [{"k" * 50_000: 1}, {"conversations": [], "k" * 50_000: ["x.jpg"]}])
def test_keys_of_any_length_make_short_messages(tmp_path: Path, row: dict[str, object]) -> None:
    (tmp_path / "data.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match="kkk") as refused:
        for _, record in records(tmp_path / "data.json"):
            images_of(record)
    assert len(str(refused.value)) < 600


def test_nan_is_read_in_both_forms_and_is_a_word_in_texts(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"score": float("nan"), "most": [float("inf"), -float("inf")], "id": 'NaN, "NaN" \\'}, ROW]
    (tmp_path / "data.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = list(records(tmp_path / "data.json"))
    assert found == list(enumerate([ROW, rows[1] | {"score": None, "most": [None, None]}, ROW], 1))
    assert list(records(tmp_path / "data.jsonl")) == found
    (tmp_path / "data.json").write_text(json.dumps(rows)[:-30] + " Nan]")
    with pytest.raises(UserError, match=r"data\.json: expected a JSON array in UTF-8; after entry 2: "):
        list(records(tmp_path / "data.json"))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_numbers_that_are_none_are_found_wherever_the_bytes_are_cut(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_array, "_CHUNK", chunk)
    text = b'[NaN,-Infinity, {"NaN": Infinity, "a\\"NaN": -1.5e3, "\\\\":NaN}, true,false,"-Infinity NaN", null,NaN]'
    file, parts = JsonNumbers(io.BytesIO(text)), []
    while part := file.read(1):
        parts.append(part)
    expected = b'[null,null, {"NaN": null, "a\\"NaN": -1.5e3, "\\\\":null}, true,false,"-Infinity NaN", null,null]'
    assert b"".join(parts) == expected
    assert JsonNumbers(io.BytesIO(b'["cut')).read(0) == b""
    assert json.loads(b"".join(parts))[2]["\\"] is None


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_halves_of_pairs_are_read_as_in_jsonl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int) -> None:
    """ijson's C parser joins a high half with any escape after it, and fails at a low half alone."""
    array, lines, read = tmp_path / "data.json", tmp_path / "data.jsonl", json_array._WholePairs.read
    monkeypatch.setattr(json_array._WholePairs, "read", lambda file, most: read(file, min(size, most)))
    for texts in product(["\ud83d", "\udc4d", "\u4f60", "\U0001f600", "\\", "\\ud8", "x"], repeat=2):
        rows = [json.dumps(ROW | {"id": "".join(texts), "score": score}) for score in (1, float("nan"))]
        array.write_text(f"[{','.join(rows)}]")
        lines.write_text("\n".join(rows))
        assert list(records(array)) == list(records(lines))


def test_only_halves_of_pairs_need_the_slow_parser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(json_array, "slow_parser", None)
    # The borders of what ijson reads at once lie in pairs, or in what a program writes of them.
    for shift, text in product(range(12), ("\U0001f600", "\\ud83d\\ude00")):
        (tmp_path / "data.json").write_text(json.dumps([ROW | {"id": "x" * shift + text * 12_000}]))
        assert len(list(records(tmp_path / "data.json"))) == 1


def bad_inputs(folder: Path) -> dict[str, str]:
    """What is asked for, and what must be said."""
    (folder / "empty").mkdir()
    for name in ("empty.csv", "empty.parquet", "empty.txt", "x.zip", "x.tar.gz"):
        (folder / name).write_bytes(b"")
    (folder / "columns.csv").write_text("a,b\n1,2\n")
    (folder / "no.parquet").write_text("no")
    (folder / "mixed").mkdir()
    (folder / "mixed" / "a.tar").touch()
    (folder / "mixed" / "b.parquet").touch()
    pq.write_table(pa.table({"text": ["x"]}), folder / "text.parquet")
    pq.write_table(pa.table({"one": [b"x"], "two": [b"y"]}), folder / "two.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), folder / "none.parquet")
    write_tar(folder / "none.tar", {"a.txt": b"x"})
    return {
        "empty": "expected images, found none",
        "empty.csv": "empty.csv: expected a column called path, image, file_name or uri; found nothing",
        "empty.txt": "expected images, found none",
        "empty.parquet": "empty.parquet: expected a Parquet file",
        "no.parquet": "no.parquet: expected a Parquet file",
        "text.parquet": "text.parquet: expected a column called path, image, file_name or uri; found text",
        "two.parquet": "expected one column of images, or one called 'image'; found one, two",
        "none.parquet": "expected images, found none",
        "none.tar": "expected images, found none (left out: files without an image's suffix: 1)",
        "columns.csv": "found a, b",
        "x.zip": "expected a folder, a .json",
        "x.tar.gz": "expected a folder, a .json",
        "mixed": "holds .parquet and .tar files; give one kind, such as '",
        "*.tgz": "expected files; found none called *.tgz",
        "{0..2}.tar": "expected files; found none called 0.tar",
        "*.*": "expected a folder, a .json",
        "nothing": "found nothing there",
        "memory://nothing": "memory://nothing: expected a folder of images; found nothing there",
        "memory://nothing.csv": "memory:///nothing.csv: expected a file; found nothing there",
        "gopher://x/y": "Protocol not known: gopher",
        "hf:nobody/nothing": "cannot be loaded: Couldn't reach 'nobody/nothing' on the Hub",
    }


def test_every_bad_input_is_one_clear_line(tmp_path: Path, command: Any, words: Path) -> None:
    for name, expected in bad_inputs(tmp_path).items():
        with refused(expected):
            list_samples(name if ":" in name else f"{tmp_path}/{name}")
    refuses(command, "", *labelling(tmp_path / "no.parquet", words, tmp_path / "out"))
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
    write_parquet(Path("t.parquet"), {"a.png": b"A"})
    write_dataset(Path("saved"), train={"image": [{"bytes": b"A", "path": "a.png"}]})
    with refused(expected):
        list_samples(**({"images": "photos"} | settings))


def test_a_dataset_reads_no_file_outside_its_folder(tmp_path: Path) -> None:
    import datasets

    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    inside = tmp_path / "saved" / "inside.png"
    path = write_dataset(tmp_path / "saved", train={"image": [{"bytes": b"A", "path": "a"}]})
    inside.write_bytes(b"inside")
    (tmp_path / "blob").write_bytes(b"linked")  # as in a snapshot of the hub's cache
    (link := tmp_path / "saved" / "link.png").symlink_to("../blob")
    (loop := tmp_path / "loop.png").symlink_to("loop.png")
    outside = f"{tmp_path}/saved/../secret.png"
    cells = [{"bytes": None, "path": path and str(path)} for path in (secret, inside, None, link, outside, loop)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (arrow,) = (path / "train").glob("*.arrow")
    with pa.OSFile(str(arrow), "wb") as file:
        schema = datasets.Features({"image": datasets.Image()}).arrow_schema
        with pa.ipc.new_stream(file, schema) as writer:
            writer.write_table(pa.table({"image": pa.array(cells, kind)}, schema=schema))
    for streaming in (False, True):
        listing = list_samples(f"hf:{path}", streaming=streaming)
        found = list(read_all(listing).values())
        if not streaming:
            assert listing.notes == {"rows without an image": 1}
            found.insert(2, "found neither")
        assert str(found[0]).startswith("the row names a file outside the dataset's folder; ")
        assert found[1] == b"inside"
        assert "found neither" in str(found[2])
        assert found[3:] == [b"linked", found[0], found[0]]

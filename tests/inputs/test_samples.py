import json
import os
from pathlib import Path
from typing import Any

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.inputs.sources import list_samples


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


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    touch(photos / "a" / "x.png", tmp_path / "elsewhere" / "y.png")
    (photos / "a" / "up").symlink_to(photos)
    (photos / "self").symlink_to("self")
    (photos / "b").symlink_to(tmp_path / "elsewhere")
    listing = list_samples(str(photos))
    assert ids(listing) == ["a/x.png", "b/y.png"]
    assert listing.notes["links that lead back to a folder above them"] == 1


def test_a_name_that_is_not_utf8_is_a_problem_of_that_picture(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9.png")).write_bytes(b"")
    good, bad = sorted(list_samples(str(tmp_path)).samples, key=lambda sample: sample.problem is not None)
    assert good == Sample("a.png", "a.png")
    assert bad.image_id == "\\xe9t\\xe9.png"
    assert bad.problem is not None
    assert "not UTF-8" in bad.problem


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
    assert listing.notes == {
        "text-only entries": 1,
        "repeated entries of an image": 1,
    }


@pytest.mark.parametrize("image", ["../up.jpg", "/etc/passwd", "a/../../up.jpg", "a\0b.jpg", "\ud800.jpg", 7, ""])
def test_a_path_that_leaves_the_root_or_is_none_costs_that_picture(tmp_path: Path, image: Any) -> None:
    first, second = list_samples(str(llava(tmp_path / "data.jsonl", "zzz.jpg", image))).samples
    bad, good = (second, first) if first.problem is None else (first, second)
    assert bad.problem
    assert good == Sample("zzz.jpg", "zzz.jpg")
    bad.image_id.encode("utf-8")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("coco.json", '{"images": []}', "an array of records; found an object"),
        ("empty.json", "", "an empty file"),
        ("other.json", '[{"file_name": "a.jpg", "height": 3}]', "entry 1: expected a LLaVA record"),
        ("strings.json", '["a.jpg"]', "entry 1"),
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
    assert expected in str(error.value)
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


def test_an_input_with_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found nothing there"):
        list_samples(str(tmp_path / "absent"))
    touch(tmp_path / "readme.md")
    with pytest.raises(UserError, match=r"found none \(left out: files without an image's suffix: 1\)"):
        list_samples(str(tmp_path))


def test_a_shuffled_json_gives_the_same_plan_and_limit_takes_the_first(tmp_path: Path) -> None:
    one = list_samples(str(llava(tmp_path / "1.json", "c", "a", "b")), tmp_path)
    two = list_samples(str(llava(tmp_path / "2.json", "b", "c", "a")), tmp_path)
    assert one.samples == two.samples
    assert ids(list_samples(str(tmp_path / "1.json"), tmp_path, limit=2)) == ["a", "b"]


def test_the_packaged_photos_are_there() -> None:
    listing = list_samples(None)
    assert len(listing.samples) == 11
    assert all((Path(listing.root) / sample.uri).is_file() for sample in listing.samples)

"""Inputs and options that are refused in one line, and paths that would lead out of an input."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sea_pipeline.inputs.sources import list_samples
from tests.support.contents import read_all
from tests.support.photo_forms import write_dataset, write_parquet, write_tar
from tests.support.refused import refused
from tests.support.world import draw_folder


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
    write_tar(folder / "none.tar", [("a.txt", b"x")])
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
    write_parquet(Path("t.parquet"), {"a.png": b"A"})
    write_dataset(Path("saved"), train={"image": [{"bytes": b"A", "path": "a.png"}]})
    with refused(expected):
        list_samples(**({"images": "photos"} | settings))


@pytest.mark.parametrize(
    "path", ["../up.png", "/etc/passwd", "a/../../up.png", "s3://b/x.png", "http://h/x.png", "a\0"]
)
def test_a_path_in_a_list_that_leaves_the_root_costs_that_image(tmp_path: Path, path: str) -> None:
    (tmp_path / "list.txt").write_text(f"good.png\n{path}\n")
    problems = {sample.image_id: sample.problem for sample in list_samples(str(tmp_path / "list.txt")).samples}
    assert problems.pop("good.png") is None
    assert all(problems.values())
    assert len(problems) == 1


def test_a_dataset_reads_no_file_outside_its_folder(tmp_path: Path) -> None:
    import datasets

    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    inside = tmp_path / "saved" / "inside.png"
    path = write_dataset(tmp_path / "saved", train={"image": [{"bytes": b"A", "path": "a"}]})
    inside.write_bytes(b"inside")
    cells = [{"bytes": None, "path": str(secret)}, {"bytes": None, "path": str(inside)}, {"bytes": None, "path": None}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (arrow,) = (path / "train").glob("*.arrow")
    with pa.OSFile(str(arrow), "wb") as file:
        schema = datasets.Features({"image": datasets.Image()}).arrow_schema
        with pa.ipc.new_stream(file, schema) as writer:
            writer.write_table(pa.table({"image": pa.array(cells, kind)}, schema=schema))
    for streaming in (False, True):
        found = list(read_all(list_samples(f"hf:{path}", streaming=streaming)).values())
        assert found[0] == "the row names a file outside the dataset's folder"
        assert found[1] == b"inside"
        assert "found neither" in str(found[2])

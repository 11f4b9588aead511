"""Paths of this machine that look like URLs are paths, wherever they are given."""

import ast
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.sources import list_samples, open_source
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage.paths import is_url, place
from tests.support.contents import content, read_all
from tests.support.paths import MODULES, ROOT
from tests.support.photo_forms import copy_to, write_dataset, write_folder, write_list, write_parquet, write_tar
from tests.support.refused import refused
from tests.support.world import Label, draw_folder

NAMES = [
    "C:/x", "s3:/bucket/x", "file:x", "file:/x", "memory:x", "data:x", "hdfs:x/y", "gs:x", "viewfs:x", "a:b", ":x",
    "x:", "a#b?c", "x%41 y", "abfs:a@b/x", "mock:x", "1:2:3",
]  # fmt: skip


@pytest.mark.parametrize(
    "path", [*NAMES, "a::b.jpg", "/a/b://c", "hf:x", r"C:\runs\labels\x", r"runs\labels\x", r"\\server\share\x"]
)
def test_what_looks_like_a_url_is_a_path(path: str) -> None:
    assert not is_url(path)
    assert isinstance(place(path), Path)


def test_what_a_url_is() -> None:
    assert is_url("s3://b/x")
    assert is_url("simplecache::s3://b")


@pytest.mark.parametrize("text", ["file://", "local://", "hf:", "hf::train", "zip://::", "dir://"])
def test_a_prefix_with_nothing_behind_it_is_not_the_working_folder(text: str) -> None:
    for opened in (list_samples,) if text.startswith("hf:") else (list_samples, open_source, place):
        with refused("behind", text, match="found none"):
            opened(text)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s3:/bucket/x", "file:x", "file:/x", "a#b?c", "x%41 y", "1:2:3"])
def test_labels_go_to_a_folder_of_any_name(label: Label, here: Path, name: str) -> None:
    photos = draw_folder(here / name / "photos", 5)
    (photos / "b" / "zzz.png").write_bytes(b"no image")
    settings: dict[str, Any] = {"images": f"{name}/photos", "max_bad": 0.5, "shard_size": 2}
    label(**settings, out=here / "plain")
    label(**settings, out=f"{name}/labels")
    out = Path(name) / "labels"
    assert content(out) == content(here / "plain")
    assert (here / name / "labels" / "dataset.json").exists()
    store = open_labels(f"{name}/labels")
    assert len([store[image_id] for image_id in store]) == 5
    assert [bad["image_id"] for bad in store.quarantine()] == ["b/zzz.png"]
    assert check_files(Ledger.open(out)).problems == []
    draw_folder(photos / "c", 3)
    assert label(**settings, out=f"{name}/labels", extend=True).report.images == 3
    assert label(**settings, out=f"{name}/labels").report.images == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "[a]", "a[1]{0..3}*"])
def test_images_come_from_files_of_any_name(here: Path, name: str) -> None:
    photos = {f"{number}.png": bytes([number]) for number in range(3)}
    folder = here / name
    write_folder(folder, photos)
    write_parquet(folder / "of:images.parquet", photos)
    write_tar(folder / "tars" / "a:0.tar", photos)
    with (folder / "list:1.parquet").open("wb") as file:
        pq.write_table(pa.table({"path": list(photos)}), file)
    write_list(folder / "list:1.csv", [{"path": image} for image in photos])
    for asked in ("", "of:images.parquet", "tars", "tars/a:0.tar", "list:1.parquet", "list:1.csv"):
        for start in (name, folder):
            assert read_all(list_samples(f"{start}/{asked}")) == photos, (start, asked)
    assert list_samples(f"file://{folder}").root == str(folder)


ALL = ["000", "001", "002"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{002..000}", ALL), ("{000..2}", ALL), ("{2..000}", ALL), ("00{2..0}", ALL), ("{000,00{1..2}}", ALL),
        ("{{000..001},002}", ALL), ("{000..000}", ["000"]), ("{001,001}", ["001"]),
        ("0{0,1}{0..0}", "found none called x-010.tar"), ("{000..001}{", "found none called x-000{.tar"),
        ("{,00}{0..2}", "found none called x-0.tar"), ("[", "found none called x-[.tar"),
        ("{a..c}", "expected a range of numbers, such as {000..009}; found {a..c}"),
        ("{0..9..3}", "expected a range of numbers"), ("{-2..1}", "expected a range of numbers"),
        ("{..}", "expected a range of numbers"), ("{0.." + "9" * 5000 + "}", "expected a range of numbers"),
        ("{0..99999999999}", "means more than 1,000,000 files"),
        ("{0..9999}{0..9999}", "means more than 1,000,000 files"),
        ("{1}", "found nothing there"), ("{}", "found nothing there"), ("{000..002", "found nothing there"),
        ("}000..002{", "found nothing there"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("root", ["here", "memory:/"])
def test_braces_are_read_or_refused_in_one_line(
    here: Path, pattern: str, expected: list[str] | str, root: str, empty_memory: None
) -> None:
    for name in ALL:
        write_tar(Path("here") / f"x-{name}.tar", {f"{name}.png": b"x"})
    copy_to("memory://", Path("here"))
    asked = f"{root}/x-{pattern}.tar"
    if isinstance(expected, list):
        assert [sample.image_id for sample in list_samples(asked).samples] == [f"{name}.png" for name in expected]
        return
    with refused(match=f"{re.escape(expected)}|expected a file; found nothing there"):
        list_samples(asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "streaming"), [("s3:/bucket/x", False), ("data:x", True), ("file:x", False), ("run:1", True)]
)
def test_datasets_are_read_from_folders_of_any_name(
    here: Path, name: str, streaming: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "cache")
    write_parquet(here / name / "loaded" / "train.parquet", {"a.png": b"A"})
    write_dataset(here / name / "saved", train={"image": [{"bytes": b"A", "path": "a.png"}]})
    capfd.readouterr()
    for asked in ("loaded", "saved"):
        assert list(read_all(list_samples(f"hf:{name}/{asked}", streaming=streaming)).values()) == [b"A"]
    assert capfd.readouterr().err == "", "bars are for those who hear the log"


@pytest.mark.parametrize("name", ["a::b", "[a]"])
def test_a_folder_whose_name_datasets_cannot_read_is_said_to_be_so(here: Path, name: str) -> None:
    write_parquet(here / name / "train.parquet", {"a.png": b"A"})
    with pytest.raises(UserError, match=r"cannot be loaded: .*; datasets takes :: .* rename the folder"):
        list_samples(f"hf:{name}")


@pytest.mark.slow
def test_arrow_is_given_open_files_alone() -> None:
    """Of a path it makes a URL where it can; one file opens for it, and three give it files that are open."""
    opens = {
        "sea_pipeline/storage/parquet.py",
        "sea_pipeline/inputs/sources/hub.py",
        "sea_pipeline/inputs/sources/path_lists.py",
        "sea_pipeline/inputs/sources/tables.py",
    }
    found = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            assert not {f"{module}{name}" for name in names} & {"pyarrow.dataset", "pyarrow.fs"}, path
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            calls = {"ParquetWriter", "ParquetFile", "write_table", "read_table", "ParquetDataset", "read_schema"}
            if called in {f"pq.{name}" for name in calls | {"read_metadata", "write_metadata", "write_to_dataset"}}:
                found.add(path.relative_to(ROOT).as_posix())
    assert found == opens


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_file_of_several_whose_name_is_not_utf8_costs_itself(here: Path, kind: str) -> None:
    for name in (f"1.{kind}", os.fsdecode(b"x\xe9." + kind.encode())):
        if kind == "tar":
            write_tar(here / "in" / name, {f"{len(name)}.png": b"A"})
        else:
            write_parquet(here / "in" / "0", {"a": b"A"}).rename(here / "in" / name)
    found = read_all(list_samples("in"))
    assert found.popitem()[1] == "the name of the file is not UTF-8; rename it"
    assert list(found.values()) == [b"A"]


def test_a_name_that_is_not_utf8_spares_one_that_is_spelt_like_its_escape(label: Label, here: Path) -> None:
    photos = draw_folder(here / "photos", 1)
    (photo,) = [file for file in photos.rglob("*") if file.is_file()]
    (photos / os.fsdecode(b"x\xe9.png")).write_bytes(photo.read_bytes())
    photo.rename(photos / r"x\xe9.png")
    label(images=str(photos), out=here / "labels", max_bad=0.5)
    store = open_labels(here / "labels")
    assert list(store) == [r"x\xe9.png"]
    assert [bad["image_id"] for bad in store.quarantine()] == [r"x\xe9.png"]

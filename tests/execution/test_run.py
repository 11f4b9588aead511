"""Runs that are repeated or resumed, and folders that they are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sea_pipeline.core.errors import UserError
from tests.support.contents import content
from tests.support.world import ColourEncoder, Label, draw_folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "photos", 18)


def test_a_second_run_finds_nothing_to_do(label: Label, encoder: ColourEncoder, photos: Path, tmp_path: Path) -> None:
    label(images=str(photos))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "labels").rglob("*")}
    encoder.patches = encoder.words = None  # type: ignore[method-assign,assignment]  # must not be called
    again = label(images=str(photos))
    assert (again.report.images, again.report.bad) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "labels").rglob("*")} == before


def test_only_what_is_missing_is_done_again(label: Label, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    label(images=str(photos))
    whole = content(out)
    (out / "commits" / "00001.json").unlink()
    (out / "labels" / "part-00003-of-00005.parquet").write_bytes(b"short")
    (out / "commits" / "00004.json").write_text("{half")
    (out / "manifest.json").unlink()
    again = label(images=str(photos))
    assert again.report.images == 4 + 4 + 2
    assert content(out) == whole


def test_a_deleted_shard_is_made_again(label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=str(photos))
    whole = content(tmp_path / "labels")
    (tmp_path / "labels" / "labels" / "part-00001-of-00005.parquet").unlink()
    label(images=str(photos))
    assert content(tmp_path / "labels") == whole


@pytest.mark.parametrize("name", ["words.txt", "plan.parquet"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_list_or_plan_that_is_lost_is_written_again(
    label: Label, photos: Path, tmp_path: Path, name: str, harm: Callable[[Path], object]
) -> None:
    label(images=str(photos))
    out = tmp_path / "labels"
    whole = content(out)
    for manifest in (True, False):
        harm(out / name)
        if not manifest:
            (out / "manifest.json").unlink()
        assert label(images=str(photos)).report.images == 0
        assert content(out) == whole


def test_a_plan_of_other_images_is_not_written_again(label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=str(photos))
    plan = tmp_path / "labels" / "plan.parquet"
    held = plan.read_bytes()
    plan.unlink()
    draw_folder(photos / "more", 1)
    for extend in (False, True):
        with pytest.raises(UserError, match=r"plan\.parquet: expected a file.*give the very images that it was"):
            label(images=str(photos), extend=extend)
    with pytest.raises(UserError, match=r"plan\.parquet: expected a file"):
        label(images=str(photos), top_n=2)
    shutil.rmtree(photos / "more")
    label(images=str(photos))
    assert plan.read_bytes() == held


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"top_n": 2}, "top_n: 3 there, 2 asked for"),
        ({"shard_size": 5}, "shard_size: 4 there, 5 asked for"),
        ({"limit": 7}, "images that are gone: 11 (such as "),
        ({"wordlist": "short.txt"}, "wordlist.words: 8 there, 3 asked for"),
    ],
)
def test_other_settings_on_the_same_folder_are_refused(
    label: Label, photos: Path, tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    label(images=str(photos))
    whole = content(tmp_path / "labels")
    (tmp_path / "short.txt").write_text("red\ngreen\nblue")
    if "wordlist" in change:
        change = {"wordlist": str(tmp_path / "short.txt")}
    with pytest.raises(UserError, match="choose another --out") as error:
        label(images=str(photos), **change)
    assert expected in str(error.value)
    assert content(tmp_path / "labels") == whole


def test_another_encoder_is_refused_by_the_field_that_differs(
    label: Label, encoder: ColourEncoder, photos: Path
) -> None:
    label(images=str(photos))
    encoder.version = "2"
    with pytest.raises(UserError, match=r'encoder\.version: "1" there, "2" asked for$'):
        label(images=str(photos))


def test_other_images_are_refused(label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=str(photos))
    draw_folder(photos / "more", 1)
    with pytest.raises(UserError, match="new images: 1"):
        label(images=str(photos))
    shutil.rmtree(photos / "more")
    other = draw_folder(tmp_path / "other" / "photos", 18, seed=1)
    with pytest.raises(UserError, match="was another one when this folder was begun"):
        label(images=str(other))
    moved = shutil.copytree(draw_folder(tmp_path / "same", 18), tmp_path / "moved")
    assert label(images=str(moved)).report.images == 0


def test_folders_that_are_not_ours_are_refused(label: Label, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"found 'thesis\.tex'"):
        label(images=str(photos))
    with pytest.raises(UserError, match="inside the input folder"):
        label(images=str(photos), out=photos / "labels")
    with pytest.raises(UserError, match="found a file"):
        label(images=str(photos), out=tmp_path / "colours.txt")

"""Folders of labels made of others: what every command makes of them, and what a kill leaves."""

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.join import merge as merging
from sea_pipeline.join.merge import merge
from sea_pipeline.join.select import select
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage import publish
from sea_pipeline.storage.remote import RemotePath
from tests.support.contents import content, rows, stored
from tests.support.damage import flip
from tests.support.heard import Heard
from tests.support.joins import listed_file, problems
from tests.support.kills import killed_around
from tests.support.old_labels import made_old
from tests.support.photo_forms import copy_to
from tests.support.refused import refused
from tests.support.world import Label, draw_folder

pytestmark = pytest.mark.usefixtures("empty_memory")


@pytest.fixture
def parts(label_all: Label, photos: Path, tmp_path: Path) -> list[Path]:
    """Labels of two disjoint lists of the same photos: shards of 4, 4, 1 and of 4, 4, 4 images."""
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    made = [tmp_path / "part0", tmp_path / "part1"]
    for out, some in zip(made, (names[:9], names[9:]), strict=True):
        label_all(out, images=str(listed_file(tmp_path / f"{out.name}.csv", some)))
    return made


def test_a_merged_folder_holds_the_rows_of_its_parts_without_space(
    command: Any, parts: list[Path], tmp_path: Path
) -> None:
    code, stdout, _ = command("merge", *parts, "--out", tmp_path / "both", "--json")
    assert code == 0
    assert json.loads(stdout) == {
        "folder": str(tmp_path / "both"), "images": 20, "bad": 1, "shards": 6, "linked": 6, "rewritten": 0
    }  # fmt: skip
    both = open_labels(tmp_path / "both")
    assert rows(both) == rows(open_labels(parts[0])) | rows(open_labels(parts[1]))
    assert both.ids == [*open_labels(parts[0]).ids, *open_labels(parts[1]).ids]
    (bad,) = both.quarantine()
    assert bad["image_id"] == "003.png"
    shards = sorted((tmp_path / "both" / "labels").iterdir())
    assert [shard.name[:19] for shard in shards] == [f"part-{n:05d}-of-0000{e}" for n, e in enumerate("333666")]
    assert all(shard.stat().st_nlink == 2 for shard in shards)
    assert problems(tmp_path / "both") == []
    assert command("verify", tmp_path / "both")[0] == 0
    status = json.loads(command("status", tmp_path / "both", "--json")[1])
    assert (status["finished"], status["images_done"], status["images_bad"]) == (True, 20, 1)
    assert not list((tmp_path / "both" / ".tmp").iterdir())


def into_links(folder: Path, store: Path, *, relative: bool) -> dict[Path, bytes]:
    """Move a folder's files into a store, as the hub's cache, DVC and git-annex do, and leave links to them."""
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        kept = store / f"{folder.name}-{number}"
        store.mkdir(exist_ok=True)
        path.rename(kept)
        path.symlink_to(os.path.relpath(kept, path.parent) if relative else kept)
    return {path: path.read_bytes() for path in store.iterdir()}


def test_folders_of_links_are_joined_and_extended(
    label_all: Label, parts: list[Path], photos: Path, tmp_path: Path
) -> None:
    whole = rows(open_labels(parts[0])) | rows(open_labels(parts[1]))
    into_links(parts[0], tmp_path / "store", relative=True)
    blobs = into_links(parts[1], tmp_path / "store", relative=False)
    merge(parts, tmp_path / "both")
    select(parts[0], [open_labels(parts[0]).ids[0]], tmp_path / "some")
    for name in ("both", "some"):
        assert not [path for path in (tmp_path / name).rglob("*") if path.is_symlink()]
        assert problems(tmp_path / name) == []
    assert rows(open_labels(tmp_path / "both")) == whole
    draw_folder(photos / "more", 3, seed=3)
    names = [*open_labels(parts[1]).ids, *(f"more/{path}" for path in ("000.png", "a/001.png", "b/002.png"))]
    longer = str(listed_file(tmp_path / "longer.csv", names))
    assert label_all(parts[1], images=longer, extend=True).report.images == 3
    assert problems(parts[1]) == []
    assert {path: path.read_bytes() for path in blobs} == blobs, "nothing is written through a link"


@pytest.mark.slow
def test_label_takes_a_merged_folder_for_one_of_its_own(
    label_all: Label, parts: list[Path], photos: Path, tmp_path: Path
) -> None:
    """The whole list finds nothing to do; a longer one extends it, to the means that one run gives."""
    merge(parts, tmp_path / "both")
    before = stored(str(tmp_path / "both"))
    assert label_all(tmp_path / "both").report.images == 0
    after = stored(str(tmp_path / "both"))
    places = ("source", "image_root", "encoder")  # where the images are now
    here, there = (json.loads(files.pop("dataset.json")) for files in (after, before))
    assert here | dict.fromkeys(places) == there | dict.fromkeys(places)
    assert after == before
    draw_folder(photos / "more", 5, seed=3)
    assert label_all(tmp_path / "both", extend=True).report.images == 5
    label_all(tmp_path / "whole")
    assert rows(open_labels(tmp_path / "both")) == rows(open_labels(tmp_path / "whole"))
    means = [open_labels(tmp_path / name).mean_similarity() for name in ("both", "whole")]
    assert np.allclose(*means, rtol=0, atol=1e-7)
    draw_folder(photos, 21)
    assert label_all(tmp_path / "both", retry_bad=True).report.images == 4
    assert "003.png" in open_labels(tmp_path / "both")
    assert [list(open_labels(part).quarantine()) != [] for part in parts] == [True, False]  # theirs are untouched
    assert problems(parts[0]) == []


@pytest.mark.slow
def test_folders_that_were_extended_or_merged_are_merged(
    label_all: Label, photos: Path, parts: list[Path], tmp_path: Path
) -> None:
    late: list[str] = []
    for name, count in (("x", 6), ("y", 3)):
        more = draw_folder(photos / name, count, seed=5)
        late += sorted(path.relative_to(photos).as_posix() for path in more.rglob("*.png"))
        label_all(tmp_path / "late", images=str(listed_file(tmp_path / "late.csv", late)), extend=name == "y")
    merge(parts, tmp_path / "both")
    merge([tmp_path / "late", tmp_path / "both"], tmp_path / "all")
    assert len(Ledger.open(tmp_path / "all").dataset.parts) == 4
    assert rows(open_labels(tmp_path / "all")) == rows(open_labels(tmp_path / "late")) | rows(
        open_labels(tmp_path / "both")
    )
    assert problems(tmp_path / "all") == []
    assert label_all(tmp_path / "all").report.images == 0


@pytest.mark.slow
def test_a_killed_merge_is_finished_by_the_same_call(label_all: Label, parts: list[Path], tmp_path: Path) -> None:
    """Killed before and after each file that appears; the parts are of one shard and of two."""
    for part in parts:
        shutil.rmtree(part)
        label_all(part, images=str(tmp_path / f"{part.name}.csv"), shard_size=9)
    merge(parts, tmp_path / "whole")
    whole = stored(str(tmp_path / "whole"))
    for call, before in itertools.product(range(1, 14), (True, False)):
        out = tmp_path / f"killed{call}{before}"
        with killed_around(publish, "_put_in_place", call, before=before):
            merge(parts, out)
        if (out / "dataset.json").exists() and not (out / "manifest.json").exists():
            with pytest.raises(UserError, match="expected a finished folder"):
                open_labels(out)
        merge(parts, out)
        assert stored(str(out)) == whole, (call, before)


def test_copies_where_the_disk_has_no_links(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: str
) -> None:
    merge(parts, tmp_path / "linked")
    expected = stored(str(tmp_path / "linked"))
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError(18, "Invalid cross-device link")))
    done = merge(parts, tmp_path / "both")
    assert (done.linked, stored(str(tmp_path / "both"))) == (0, expected)
    for url in ("memory://both", "s3://bucket/both"):
        merge(parts, url)
        assert stored(url) == expected


@pytest.mark.parametrize("store", ["memory://", "s3://bucket/in/"])
def test_a_store_copies_by_itself(
    parts: list[Path], tmp_path: Path, s3: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(parts, tmp_path / "both")
    for part in parts:
        copy_to(f"{store}{part.name}", part)
    copied: list[str] = []
    plain = RemotePath.copy_from

    def copying(path: RemotePath, other: RemotePath) -> bool:
        copied.append(other.name)
        return plain(path, other)

    monkeypatch.setattr(RemotePath, "copy_from", copying)
    monkeypatch.setattr(merging, "bring", lambda *_: pytest.fail("a shard has come to this machine"))
    monkeypatch.setattr(merging, "partial", lambda _, path: lambda scratch: path.download(scratch))
    merge([f"{store}{part.name}" for part in parts], f"{store}merged")
    assert len(copied) == 7
    assert stored(f"{store}merged") == stored(str(tmp_path / "both"))


@pytest.mark.slow
def test_other_cuts_are_written_anew(
    label_all: Label, parts: list[Path], whole: Path, photos: Path, tmp_path: Path
) -> None:
    merge(parts, tmp_path / "linked")
    shutil.rmtree(parts[1])
    label_all(parts[1], images=str(tmp_path / "part1.csv"), shard_size=5)
    done = merge(parts, tmp_path / "both")
    assert (done.linked, done.rewritten, done.shards, done.images, done.bad) == (0, 6, 6, 20, 1)
    ours, theirs = content(tmp_path / "both"), content(whole)
    assert ours["plan.parquet"] == theirs["plan.parquet"]
    for name in ours:
        if name.startswith("labels/"):
            assert pq.read_table(tmp_path / "both" / name).equals(pq.read_table(whole / name)), name
    linked, both, means = (open_labels(at).mean_similarity() for at in (tmp_path / "linked", tmp_path / "both", whole))
    assert np.allclose((linked, both), means, rtol=0, atol=1e-7), "those of all patches"
    draw_folder(photos / "more", 5, seed=3)
    for folder in (tmp_path / "both", whole):
        label_all(folder, extend=True)
    means = [open_labels(folder).mean_similarity() for folder in (tmp_path / "both", whole)]
    assert np.allclose(*means, rtol=0, atol=1e-7), "the sums of shards that were written anew"
    assert problems(tmp_path / "both") == []


@pytest.mark.slow
@pytest.mark.parametrize("root", ["s3://b/x", "tar:x", "parquet:x", "hf:x:train", "/x", "photos"])
def test_a_new_root_is_written_as_a_listing_writes_it(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.chdir(tmp_path)
    merge(parts, tmp_path / "both", image_root=root)
    written = open_labels(tmp_path / "both").image_root
    assert str(written) == (root if root != "photos" else f"{tmp_path}/photos")


def test_what_does_not_go_together_is_refused(
    label: Label, label_all: Label, parts: list[Path], photos: Path, tmp_path: Path
) -> None:
    def refuses(folders: list[Path], out: str, match: str) -> None:
        with refused(match=match):
            merge(folders, tmp_path / out)

    label_all(tmp_path / "n2", images=str(tmp_path / "part1.csv"), top_n=2)
    refuses([parts[0], tmp_path / "n2"], "x", r"n2: expected the settings of .*part0; found others: top_n: 3 and 2;")
    label(images=str(photos / "a"), out=tmp_path / "a")
    refuses([parts[0], tmp_path / "a"], "x", r"expected images below one root in all folders; found .*photos and ")
    assert merge([parts[0], tmp_path / "a"], tmp_path / "rooted", image_root="/elsewhere").images == 15
    assert str(open_labels(tmp_path / "rooted").image_root) == "/elsewhere"
    refuses([parts[0], parts[0]], "x", r"found '.*png' in both; sea-pipeline select makes a folder of what one")
    refuses([parts[0]], "x", "expected two folders or more, found 1")
    refuses([parts[0], tmp_path / "none"], "x", "found no such folder")
    refuses(parts, "part0", "part0: holds something else than what was asked for; choose another --out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    refuses(parts, "taken", r"expected an empty folder; found 'thesis\.tex' in it; choose another --out")
    (parts[1] / "manifest.json").unlink()
    refuses(parts, "x", "expected a finished folder; 3 of 3 shards are done")
    assert not (tmp_path / "x").exists()


def test_a_damaged_shard_does_not_get_in(parts: list[Path], tmp_path: Path) -> None:
    shard = next((parts[1] / "labels").glob("part-00001-*"))
    good = shard.read_bytes()
    flip(shard, len(good) // 2)
    for make in (
        lambda: merge(parts, tmp_path / "both"),
        lambda: select(parts[1], open_labels(parts[1], verify=False).ids, tmp_path / "some"),
    ):
        with pytest.raises(UserError, match=r"part1/labels/part-00001-of-00003\.parquet: damaged: expected sha256"):
            make()
    assert not list((tmp_path / "both" / "labels").glob("part-00004-*"))
    shard.write_bytes(good)
    assert merge(parts, tmp_path / "both").images == 20


def test_old_folders_are_merged_with_new_ones(parts: list[Path], tmp_path: Path) -> None:
    made_old(parts[0])
    assert Ledger.open(parts[0]).dataset.schema_version == 1
    done = merge(parts, tmp_path / "both")
    assert (done.linked, Ledger.open(tmp_path / "both").dataset.schema_version) == (0, 2)
    assert rows(open_labels(tmp_path / "both")) == rows(open_labels(parts[0])) | rows(open_labels(parts[1]))


@pytest.mark.slow
@pytest.mark.parametrize("joins", ["merge", "select"])
def test_the_same_call_makes_again_what_is_damaged(parts: list[Path], tmp_path: Path, joins: str) -> None:
    """As `verify` advises, though the file has its size, and the words are UTF-8."""
    out, heard = tmp_path / "out", Heard()
    few = [sample.image_id for sample in Ledger.open(parts[0]).plan][:7]
    calls = {
        "merge": lambda: merge(parts, out, reporter=heard),
        "select": lambda: select(parts[0], few, out, reporter=heard),
    }
    calls[joins]()
    whole = stored(str(out))
    for name in sorted(whole.keys() - {"commits"}):
        path = out / name
        data = path.read_bytes()
        path.unlink()  # so that a file of its own takes the place of a hard link
        path.write_bytes(data)
        if name == "dataset.json":
            path.unlink()
        else:
            flip(path, path.stat().st_size // 2)
            assert any(name in problem for problem in problems(out)), name
        calls[joins]()
        assert stored(str(out)) == whole, name
    again = sum(name.startswith(("labels/", "quarantine/")) for name in whole)
    assert sum(line.endswith("is done again") for line in heard.lines) == again > 2
    (out / "dataset.json").unlink()
    shutil.rmtree(out / "labels")
    calls[joins]()
    assert stored(str(out)) == whole
    (out / "dataset.json").write_bytes(b"{")
    with refused(match=r"dataset\.json: damaged: .*; restore it, or delete it and run the command that made"):
        calls[joins]()

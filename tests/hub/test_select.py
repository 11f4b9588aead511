"""Folders of labels that are a part of another's images."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.join import folder as joining
from sea_pipeline.join.merge import merge
from sea_pipeline.join.select import read_ids, select
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage import locks, publish
from tests.support.contents import content, rows, stored
from tests.support.joins import problems, whole_list
from tests.support.kills import killed_around
from tests.support.world import Label

pytestmark = pytest.mark.usefixtures("one_thread", "no_long_waits", "empty_memory")


@pytest.mark.slow
def test_selected_rows_are_those_that_label_gives(command: Any, label: Label, photos: Path, tmp_path: Path) -> None:
    listed = whole_list(photos)
    label(images=listed, image_root=str(photos), out=tmp_path / "whole", max_bad=1.0)
    names = [name for number, name in enumerate(Path(listed).read_text().split()[1:]) if number % 3 or "003" in name]
    assert "003.png" in names
    (tmp_path / "ids.txt").write_text("\n".join(reversed(names)))
    code, stdout, _ = command(
        "select", tmp_path / "whole", tmp_path / "ids.txt", "--out", tmp_path / "some", "--json"
    )  # fmt: skip
    assert (code, json.loads(stdout)["images"], json.loads(stdout)["bad"]) == (0, len(names) - 1, 1)
    Path(listed).write_text("path\n" + "".join(f"{name}\n" for name in names))
    label(images=listed, image_root=str(photos), out=tmp_path / "alone", max_bad=1.0)
    ours, theirs = content(tmp_path / "some"), content(tmp_path / "alone")
    same = ["words.txt", "plan.parquet", *(name for name in theirs if name.startswith("quarantine"))]
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    shards = [name for name in theirs if name.startswith("labels/")]
    assert len(shards) == 4
    for name in shards:
        table, other = (pq.read_table(tmp_path / folder / name) for folder in ("some", "alone"))
        assert table.equals(other)
    assert problems(tmp_path / "some") == []
    # The means are the whole folder's, for want of embeddings.
    means = [open_labels(tmp_path / name).mean_similarity().tolist() for name in ("some", "whole")]
    assert means[0] == means[1]
    assert label(
        images=listed, image_root=str(photos), out=tmp_path / "some", max_bad=1.0
    ).report.images == 0  # fmt: skip
    again = select(tmp_path / "whole", names, tmp_path / "some")
    assert again.rewritten == 0


def test_a_selected_folder_is_extended(label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=whole_list(photos), image_root=str(photos), out=tmp_path / "whole", max_bad=1.0)
    ids = [sample.image_id for sample in Ledger.open(tmp_path / "whole").plan]
    select(tmp_path / "whole", ids[::2], tmp_path / "some")
    settings = {"images": whole_list(photos), "image_root": str(photos), "max_bad": 1.0}
    assert label(**settings, out=tmp_path / "some", extend=True).report.images == 9
    assert rows(open_labels(tmp_path / "some")) == rows(open_labels(tmp_path / "whole"))
    assert problems(tmp_path / "some") == []


def test_all_of_a_folder_gives_its_very_bytes(label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=whole_list(photos), image_root=str(photos), out=tmp_path / "whole", max_bad=1.0)
    ids = [sample.image_id for sample in Ledger.open(tmp_path / "whole").plan]
    select(tmp_path / "whole", ids, tmp_path / "copy")
    assert content(tmp_path / "copy") == content(tmp_path / "whole")


def test_parts_of_a_folder_become_it_again(label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=whole_list(photos), image_root=str(photos), out=tmp_path / "whole", max_bad=1.0)
    ids = [sample.image_id for sample in Ledger.open(tmp_path / "whole").plan]
    for number in range(3):
        select(tmp_path / "whole", ids[number::3], tmp_path / f"third{number}")
    merge([tmp_path / f"third{number}" for number in range(3)], tmp_path / "again")
    assert rows(open_labels(tmp_path / "again")) == rows(open_labels(tmp_path / "whole"))
    assert label(
        images=whole_list(photos), image_root=str(photos), out=tmp_path / "again", max_bad=1.0
    ).report.images == 0  # fmt: skip


def test_crops_come_with_their_image(label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=str(photos), crops=2, out=tmp_path / "whole", max_bad=1.0)
    done = select(tmp_path / "whole", ["000.png", "a/001.png#crop2"], tmp_path / "some")
    assert (done.images, done.bad) == (4, 0)
    assert open_labels(tmp_path / "some").ids == ["000.png", "000.png#crop1", "000.png#crop2", "a/001.png#crop2"]


@pytest.mark.slow
def test_a_killed_selection_is_finished_by_the_same_call(label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=whole_list(photos), image_root=str(photos), out=tmp_path / "whole", max_bad=1.0)
    ids = [sample.image_id for sample in Ledger.open(tmp_path / "whole").plan][:11]
    select(tmp_path / "whole", ids, tmp_path / "straight")
    for call, before in itertools.product(range(1, 13), (True, False)):
        out = tmp_path / f"killed{call}{before}"
        with killed_around(publish, "_put_in_place", call, before=before):
            select(tmp_path / "whole", ids, out)
        select(tmp_path / "whole", ids, out)
        assert stored(str(out)) == stored(str(tmp_path / "straight")), (call, before)


def test_ids_that_are_none_are_refused(command: Any, label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=str(photos), out=tmp_path / "whole", max_bad=1.0)
    listed = tmp_path / "ids.json"
    for content_, said in (
        (b'["000.png", "00.png"]', "'00.png' is none of the 21 images; the nearest is '"),
        (b"[]", "expected ids of images to select; found none"),
        (b"[1]", "expected a JSON array of image ids; found [1]"),
        (b"{", "expected UTF-8 text, one image id a line, or a JSON array"),
        (b"\xff", "expected UTF-8 text"),
    ):
        listed.write_bytes(content_)
        code, _, stderr = command("select", tmp_path / "whole", listed, "--out", tmp_path / "x")
        assert (code, stderr.count("\n")) == (1, 1)
        assert said in stderr
    code, _, stderr = command("select", tmp_path / "whole", tmp_path / "none", "--out", tmp_path / "x")
    assert (code, "none: cannot be read" in stderr) == (1, True)
    assert not (tmp_path / "x").exists()


def test_ids_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes("\ufeffa b\r\n c \n\nü\n".encode())
    assert read_ids(path) == ["a b", " c ", "ü"]
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(odd := ["a\nb", "c\r", "", '"']))
    assert read_ids(path) == odd


@pytest.mark.parametrize("moment", ["entries", "sweep"])
def test_who_begins_later_leaves_the_first_ones_folder_as_it_is(
    label: Label, photos: Path, tmp_path: Path, meanwhile: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """As two machines on a network file system without locks."""

    def refused(*_: object) -> None:
        raise OSError

    label(images=whole_list(photos), image_root=str(photos), out=tmp_path / "whole", max_bad=1.0)
    ids = [sample.image_id for sample in Ledger.open(tmp_path / "whole").plan]
    monkeypatch.setattr(locks.fcntl, "flock", refused)
    meanwhile(joining, moment, lambda: select(tmp_path / "whole", ids[::2], tmp_path / "some"))
    with pytest.raises(UserError, match="choose another --out"):
        select(tmp_path / "whole", ids[::3], tmp_path / "some")
    assert problems(tmp_path / "some") == []
    assert open_labels(tmp_path / "some").ids == [one for one in ids[::2] if "003" not in one]
    meanwhile(joining, moment, lambda: select(tmp_path / "whole", ids, tmp_path / "all"))
    assert select(tmp_path / "whole", ids, tmp_path / "all").rewritten == 0
    assert problems(tmp_path / "all") == []

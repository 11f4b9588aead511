"""Folders of labels that are a part of another's images."""

import itertools
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.join import folder as joining
from sea_pipeline.join import rewrite as rewriting
from sea_pipeline.join.merge import merge
from sea_pipeline.join.select import read_ids, select
from sea_pipeline.output import begin
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage import publish
from tests.support.contents import content, rows, stored
from tests.support.joins import listed_file, problems
from tests.support.kills import killed_around
from tests.support.refused import refuses
from tests.support.world import Label, Shelved, draw_folder

pytestmark = pytest.mark.usefixtures("empty_memory")


@pytest.mark.slow
def test_selected_rows_are_those_that_label_gives(
    command: Any, label_all: Label, whole: Path, ids: list[str], tmp_path: Path
) -> None:
    names = [name for number, name in enumerate(ids) if number % 3 or "003" in name]
    (tmp_path / "ids.txt").write_text("\n".join(reversed(names)))
    code, stdout, _ = command("select", whole, tmp_path / "ids.txt", "--out", tmp_path / "some", "--json")
    assert (code, json.loads(stdout)["images"], json.loads(stdout)["bad"]) == (0, len(names) - 1, 1)
    listed = str(listed_file(tmp_path / "all.csv", names))
    label_all(tmp_path / "alone", images=listed)
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
    assert label_all(tmp_path / "some", images=listed).report.images == 0
    again = select(whole, names, tmp_path / "some")
    assert again.rewritten == 0


def test_a_selected_folder_is_extended(label_all: Label, whole: Path, ids: list[str], tmp_path: Path) -> None:
    select(whole, ids[::2], tmp_path / "some")
    assert label_all(tmp_path / "some", extend=True).report.images == 9
    assert rows(open_labels(tmp_path / "some")) == rows(open_labels(whole))
    assert problems(tmp_path / "some") == []


def test_all_of_a_folder_gives_its_very_bytes(whole: Path, ids: list[str], tmp_path: Path) -> None:
    select(whole, ids, tmp_path / "copy")
    assert content(tmp_path / "copy") == content(whole)


def test_parts_of_a_folder_become_it_again(label_all: Label, whole: Path, ids: list[str], tmp_path: Path) -> None:
    thirds = [tmp_path / f"third{number}" for number in range(3)]
    for number, third in enumerate(thirds):
        select(whole, ids[number::3], third)
    merge(thirds, tmp_path / "again")
    assert rows(open_labels(tmp_path / "again")) == rows(open_labels(whole))
    assert label_all(tmp_path / "again").report.images == 0


def test_a_shard_that_two_shards_need_is_read_once(
    whole: Path, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Mock(wraps=rewriting._open_shard)
    monkeypatch.setattr(rewriting, "_open_shard", opened)
    select(whole, ids[1:], tmp_path / "some")
    assert [call.args[2] for call in opened.call_args_list] == [0, 1, 2, 3, 4, 5]


def test_only_the_row_groups_that_are_needed_are_in_memory(
    shelved: Shelved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shelved(70, top_n=8, shard_size=40, max_bad=1) / "labels"
    ids, read = open_labels(whole).ids, Mock(wraps=rewriting.label_rows)
    monkeypatch.setattr(rewriting, "label_rows", read)
    select(whole, [*ids[35:37], ids[-1]], tmp_path / "some")
    assert [len(call.args[0]) for call in read.call_args_list] == [7, 30]
    assert rows(open_labels(tmp_path / "some")).keys() == {*ids[35:37], ids[-1]}
    select(whole, [sample.image_id for sample in Ledger.open(whole).plan], tmp_path / "all")
    assert content(tmp_path / "all") == content(whole)


def test_crops_come_with_their_image(label: Label, tmp_path: Path) -> None:
    label(images=str(draw_folder(tmp_path / "photos", 3)), crops=2, out=tmp_path / "cropped")
    done = select(tmp_path / "cropped", ["000.png", "a/001.png#crop2"], tmp_path / "some")
    assert (done.images, done.bad) == (4, 0)
    assert open_labels(tmp_path / "some").ids == ["000.png", "000.png#crop1", "000.png#crop2", "a/001.png#crop2"]


@pytest.mark.slow
def test_a_killed_selection_is_finished_by_the_same_call(whole: Path, ids: list[str], tmp_path: Path) -> None:
    ids = ids[:5]
    select(whole, ids, tmp_path / "straight")
    for call, before in itertools.product(range(1, 11), (True, False)):
        out = tmp_path / f"killed{call}{before}"
        with killed_around(publish, "_put_in_place", call, before=before):
            select(whole, ids, out)
        select(whole, ids, out)
        assert stored(str(out)) == stored(str(tmp_path / "straight")), (call, before)


def test_ids_that_are_none_are_refused(command: Any, whole: Path, tmp_path: Path) -> None:
    listed = tmp_path / "ids.json"
    for content_, said in (
        (b'["000.png", "00.png"]', "'00.png' is none of the 21 images; the nearest is '"),
        (b"[]", "expected ids of images to select; found none"),
        (b"[1]", "expected a JSON array of image ids; found [1]"),
        (b"{", "expected UTF-8 text, one image id a line, or a JSON array"),
        (b"\xff", "expected UTF-8 text"),
    ):
        listed.write_bytes(content_)
        refuses(command, said, "select", whole, listed, "--out", tmp_path / "x")
    refuses(command, "none: cannot be read", "select", whole, tmp_path / "none", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_ids_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes("\ufeffa b\r\n c \n\nü\n".encode())
    assert read_ids(path) == ["a b", " c ", "ü"]
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(odd := ["a\nb", "c\r", "", '"']))
    assert read_ids(path) == odd


@pytest.mark.parametrize("moment", [(joining, "entries"), (begin, "sweep")], ids=["entries", "sweep"])
def test_who_begins_later_leaves_the_first_ones_folder_as_it_is(
    whole: Path, ids: list[str], tmp_path: Path, unlocked: None, meanwhile: Any, moment: Any
) -> None:
    meanwhile(*moment, lambda: select(whole, ids[::2], tmp_path / "some"))
    with pytest.raises(UserError, match="choose another --out"):
        select(whole, ids[::3], tmp_path / "some")
    assert problems(tmp_path / "some") == []
    assert open_labels(tmp_path / "some").ids == [one for one in ids[::2] if "003" not in one]
    meanwhile(*moment, lambda: select(whole, ids, tmp_path / "all"))
    assert select(whole, ids, tmp_path / "all").rewritten == 0
    assert problems(tmp_path / "all") == []

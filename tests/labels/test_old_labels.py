"""Folders of schema version 1, of which scores were float16, read, verified, gone on with and mended."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sea_pipeline import open_labels
from sea_pipeline.inputs.sources import open_source
from sea_pipeline.label_cache import label_cache
from sea_pipeline.labels.run import LabelJob, LabelSettings
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from tests.support.contents import content
from tests.support.old_labels import made_old
from tests.support.world import Label, draw_folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    photos = draw_folder(tmp_path / "photos", 9)
    (photos / "003.png").write_bytes(b"")
    return photos


@pytest.fixture
def new(label: Label, photos: Path, tmp_path: Path) -> Path:
    label(images=str(photos))
    return tmp_path / "labels"


@pytest.fixture
def old(new: Path, tmp_path: Path) -> Path:
    return made_old(Path(shutil.copytree(new, tmp_path / "old")))


def kinds(folder: Path) -> list[pa.DataType]:
    """What the scores of each shard are."""
    shards = sorted((folder / "labels").iterdir())
    return [pq.read_schema(shard).field("scores").type.value_type for shard in shards]


def test_both_versions_give_the_same_bits(old: Path, new: Path, tmp_path: Path) -> None:
    assert (kinds(old), kinds(new)) == ([pa.float16()] * 3, [pa.float32()] * 3)
    assert check_files(Ledger.open(old)).problems == []
    one, other = open_labels(old), open_labels(new)
    assert (one.fingerprint, one.ids) == (other.fingerprint, other.ids)
    pairs = [(one, other), (label_cache(one, tmp_path / "one"), label_cache(other, tmp_path / "other"))]
    for ours, theirs in [*pairs, (pairs[1][0], one)]:
        for name in one:
            for value, wanted in (
                (ours[name].word_ids, theirs[name].word_ids),
                (ours[name].scores, theirs[name].scores),
            ):
                assert (value.dtype, value.tobytes()) == (wanted.dtype, wanted.tobytes())
    assert one[one.ids[0]].scores.dtype == np.float32


def test_a_finished_folder_stays_as_it_is(label: Label, photos: Path, old: Path) -> None:
    before = content(old)
    assert label(images=str(photos), out=old).report.images == 0
    assert content(old) == before


def test_what_is_missing_is_done_in_the_version_that_it_was_begun_in(label: Label, photos: Path, old: Path) -> None:
    """To the byte: a folder is of one version whichever program finishes it."""
    whole = content(old)
    commits = {path.name: json.loads(path.read_text()).keys() for path in (old / "commits").iterdir()}
    for lost in ("manifest.json", "commits/00001.json", "labels/part-00001-of-00003.parquet"):
        (old / lost).unlink()
    label(images=str(photos), out=old)
    assert content(old) == whole
    assert {path.name: json.loads(path.read_text()).keys() for path in (old / "commits").iterdir()} == commits


def test_a_worker_writes_the_version_of_its_folder(
    label: Label, photos: Path, words: Path, old: Path, new: Path, tmp_path: Path
) -> None:
    for folder, kind in ((old, pa.float16()), (new, pa.float32())):
        ledger = Ledger.open(folder)
        settings = LabelSettings.of(images=str(photos), wordlist=str(words), top_n=3, out=folder, device="cpu")
        stage = LabelJob(settings).stage(ledger)
        source, target = open_source(ledger.image_root), tmp_path / "x.parquet"
        stage.process(ledger.samples(1), source, target, {}, lambda _: None)
        assert pq.read_schema(target).field("scores").type.value_type == kind


def test_it_is_extended_in_its_version(label: Label, photos: Path, old: Path, new: Path) -> None:
    draw_folder(photos / "z", 6, seed=3)
    for folder, kind in ((old, pa.float16()), (new, pa.float32())):
        label(images=str(photos), out=folder, extend=True)
        assert kinds(folder) == [kind] * 5
    assert check_files(Ledger.open(old)).problems == []
    assert {name: open_labels(old)[name].scores.tolist() for name in open_labels(old)} == {
        name: open_labels(new)[name].scores.tolist() for name in open_labels(new)
    }


@pytest.mark.parametrize(
    "lost", [["dataset.json"], ["dataset.json", "manifest.json", "labels/part-00002-of-00003.parquet"]]
)
def test_its_records_are_made_again_in_its_version(label: Label, photos: Path, old: Path, lost: list[str]) -> None:
    whole = content(old)
    for name in lost:
        (old / name).unlink()
    label(images=str(photos), out=old)
    assert content(old) == whole

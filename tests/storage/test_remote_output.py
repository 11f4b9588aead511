"""Folders in a store elsewhere: the same bytes as on this machine, for every command and in other processes."""

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sea_pipeline import label_cache, open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.paths import entries, place
from tests.support.contents import rows, stored
from tests.support.world import Label, draw_folder

pytestmark = pytest.mark.usefixtures("no_long_waits", "empty_memory")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    photos = draw_folder(tmp_path / "photos", 8)
    (photos / "003.png").write_bytes(b"bad")
    return photos


@pytest.mark.parametrize("url", ["s3://bucket/a folder/x", "memory://x"])
def test_a_store_gets_the_bytes_that_a_folder_gets(
    label: Label, photos: Path, tmp_path: Path, s3: str, url: str
) -> None:
    label(images=str(photos))
    run = label(images=str(photos), out=url)
    assert (run.report.images, run.report.bad) == (7, 1)
    assert stored(url) == stored(str(tmp_path / "labels"))
    assert label(images=str(photos), out=url).report.images == 0
    there, here = open_labels(url), open_labels(tmp_path / "labels")
    assert str(there.path) == url
    assert rows(there) == rows(here)
    assert there.mean_similarity().tolist() == here.mean_similarity().tolist()
    assert list(there.quarantine()) == list(here.quarantine())
    assert [table.equals(other) for table, other in zip(there.tables(), here.tables(), strict=True)] == [True, True]
    cache = label_cache.label_cache(there)
    assert {name: cache[name].word_ids.tolist() for name in here} == {n: here[n].word_ids.tolist() for n in here}
    assert not list((tmp_path / "cache" / ".tmp").iterdir())


def test_a_store_is_extended(label: Label, photos: Path, tmp_path: Path) -> None:
    for out in ("memory://x", str(tmp_path / "labels")):
        label(images=str(photos), out=out)
    draw_folder(photos / "more", 5, seed=3)
    with pytest.raises(UserError, match="--extend"):
        label(images=str(photos), out="memory://x")
    for out in ("memory://x", str(tmp_path / "labels")):
        assert label(images=str(photos), out=out, extend=True).report.images == 5
    assert stored("memory://x") == stored(str(tmp_path / "labels"))


def test_an_extension_that_another_run_has_planned_counts(label: Label, photos: Path) -> None:
    label(images=str(photos), out="memory://x")
    (first,) = draw_folder(photos / "c", 1, seed=3).rglob("*.png")
    label(images=str(photos), out="memory://rival")
    label(images=str(photos), out="memory://y", extend=True)
    store = fsspec.filesystem("memory")
    before = store.cat_file("/x/dataset.json")
    label(images=str(photos), out="memory://x", extend=True)
    planned = store.cat_file("/x/plan-00001.parquet")
    store.pipe_file("/x/dataset.json", before)  # as if the run that planned it were killed then
    draw_folder(photos / "d", 2, seed=4)
    assert label(images=str(photos), out="memory://x", extend=True).report.images == 2
    assert store.cat_file("/x/plan-00001.parquet") == planned
    assert [part.images for part in Ledger.open(place("memory://x")).dataset.parts] == [8, 1, 2]
    label(images=str(photos), out="memory://whole")
    assert rows(open_labels("memory://x")) == rows(open_labels("memory://whole"))
    store.pipe_file("/x/dataset.json", before)
    first.unlink()
    with pytest.raises(UserError, match=r"plan-00001\.parquet: another run extends this folder by other images"):
        label(images=str(photos), out="memory://x", extend=True)
    assert store.cat_file("/x/dataset.json") == before


def test_the_commands_read_a_store(command: Any, photos: Path, words: Path, s3: str) -> None:
    out = "s3://bucket/commands"
    code, stdout, said = command("label", "--images", photos, "--wordlist", words, "--top-n", 3, "--out", out)
    assert (code, "7 labelled, 1 bad" in stdout, out in said) == (0, True, True)
    assert json.loads(command("status", out, "--json")[1])["finished"] is True
    assert command("verify", out)[0] == 0
    assert json.loads(command("inspect", out, "--json")[1])["images"] == 7
    assert json.loads(command("inspect", out, "a/001.png", "--json")[1])["grid"] == [3, 4]
    shard = place(out) / "labels" / "part-00000-of-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    fsspec.filesystem("s3").pipe_file(shard.path, bytes(data))
    code, _, said = command("verify", out)
    assert (code, "part-00000-of-00001.parquet: damaged" in said) == (1, True)
    with pytest.raises(ValueError, match="damaged"):
        open_labels(out)


def test_output_inside_the_input_is_refused(label: Label, photos: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put_file(str(photos / "000.png"), "/photos/000.png")
    with pytest.raises(UserError, match="lies inside the input folder"):
        label(images="memory://photos", out="memory://photos/labels")
    store.pipe_file("/taken/thesis.tex", b"")
    with pytest.raises(UserError, match=r"found 'thesis\.tex' in it"):
        label(images="memory://photos", out="memory://taken")
    store.pipe_file("/file", b"")
    with pytest.raises(UserError, match="expected a folder; found a file"):
        label(images="memory://photos", out="memory://file")


def test_what_others_write_is_seen_at_once(s3: str) -> None:
    folder = place("s3://bucket/listed")
    assert (entries(folder), folder.exists()) == ([], False)
    for name in ("a", "b"):
        fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(f"bucket/listed/{name}", b"")
        assert [entry.name for entry in entries(folder)] == ["a", "b"][: len(entries(folder))]
        assert (folder / name).is_file()
    assert [entry.name for entry in entries(folder)] == ["a", "b"]
    (folder / "a").unlink()
    (folder / "a").unlink(missing_ok=True)
    assert [entry.name for entry in entries(folder)] == ["b"]
    with pytest.raises(FileNotFoundError):
        (folder / "a").read_bytes()


def test_a_store_travels_to_other_processes(label: Label, photos: Path, s3: str) -> None:
    label(images=str(photos), out="s3://bucket/sent")
    store = open_labels("s3://bucket/sent", verify=False)
    expected = store["000.png"].word_ids.tolist()
    assert pickle.loads(pickle.dumps(store))["000.png"].word_ids.tolist() == expected
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply_async(_word_ids, (store, "000.png")).get(60) == expected


def _word_ids(store: Any, image_id: str) -> list[list[int]]:
    words: list[list[int]] = store[image_id].word_ids.tolist()
    return words

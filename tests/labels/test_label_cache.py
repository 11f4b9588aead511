"""The unpacked labels are the store's, in this process and in others; interrupted unpacking leaves nothing behind."""

import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from sea_pipeline import LabelStore, label_cache, open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.hashing import file_sha256
from sea_pipeline.storage.scratch import host
from tests.support.damage import Harm, changed, flip, made_a_folder
from tests.support.kills import DEAD
from tests.support.world import Label, draw_folder


@pytest.fixture
def store(label: Label, tmp_path: Path) -> LabelStore:
    photos = draw_folder(tmp_path / "photos", 70)
    (photos / "003.png").write_bytes(b"")
    label(images=str(photos), top_n=8, shard_size=40, max_bad=1)
    return open_labels(tmp_path / "labels")


def test_every_image_is_as_in_the_store(store: LabelStore) -> None:
    cache = label_cache.label_cache(store)
    assert len(cache) == len(store) == 69
    assert "003.png" not in cache
    for image_id in store:
        ours, theirs = cache[image_id], store[image_id]
        assert (ours.word_ids.dtype, ours.scores.dtype) == (np.int32, np.float32)
        np.testing.assert_array_equal(ours.word_ids, theirs.word_ids)
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        assert (ours.grid, ours.crop_box) == (theirs.grid, theirs.crop_box)
    assert list(cache) == cache.ids == store.ids
    with pytest.raises(KeyError, match=r"'3.png' is none of the 69 images; the nearest is '0?[0-9]*3.png'"):
        cache["3.png"]


def test_it_is_unpacked_once(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = label_cache.label_cache(store)
    assert first.folder.name == file_sha256(store.path / "manifest.json")[:32]
    monkeypatch.setattr(label_cache, "_unpack", None)
    assert label_cache.label_cache(store).folder == first.folder


HARMS: dict[str, tuple[str, Harm]] = {
    "no words": ("words.npy", Path.unlink),
    "half the scores": ("scores.npy", lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])),
    "half the ids": ("ids.json", lambda path: path.write_text('["000.png", "001')),
    "a bit of a word": ("words.npy", lambda path: flip(path, path.stat().st_size - 9)),
    "a bit of a score": ("scores.npy", lambda path: flip(path, path.stat().st_size // 2)),
    "a bit of a box": ("crop_box.npy", lambda path: flip(path, 200)),
    "a bit of a header": ("words.npy", lambda path: flip(path, 20)),
    "a bit of an id": ("ids.json", lambda path: flip(path, 3)),
    "an archive": ("scores.npy", lambda path: path.write_bytes(b"PK\3\4" + path.read_bytes()[4:])),
    "no scores": ("scores.npy", lambda path: path.write_bytes(b"")),
    "a folder of scores": ("scores.npy", made_a_folder),
    "words that lead nowhere": ("words.npy", lambda path: (path.unlink(), path.symlink_to("/nowhere/at/all"))),
    "no record": ("files.json", Path.unlink),
    "a bit of the record": ("files.json", lambda path: flip(path, 30)),
    "a record of less": ("files.json", lambda path: changed(path, "files", value=[])),
    "nothing": ("", lambda path: [file.unlink() for file in path.iterdir()]),
    "a file": ("", lambda path: (shutil.rmtree(path), path.write_text("x"))),
}


@pytest.mark.parametrize("what", HARMS)
def test_what_is_not_as_it_was_written_is_unpacked_again(store: LabelStore, tmp_path: Path, what: str) -> None:
    name, harm = HARMS[what]
    harm(label_cache.label_cache(store, str(tmp_path / "unpacked")).folder / name)
    again = label_cache.label_cache(store, tmp_path / "unpacked")
    assert again.ids == store.ids
    for image_id in store:
        np.testing.assert_array_equal(again[image_id].word_ids, store[image_id].word_ids)
        np.testing.assert_array_equal(again[image_id].scores, store[image_id].scores)
        assert again[image_id].crop_box == store[image_id].crop_box


def test_of_two_that_find_it_damaged_one_unpacks(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other has seen the damage, and waits for the lock meanwhile."""
    folder = label_cache.label_cache(store).folder
    flip(folder / "words.npy", 300)
    plain, unpacked = label_cache._is_whole, []

    def beaten(looked_at: Path) -> bool:
        found = plain(looked_at)
        monkeypatch.setattr(label_cache, "_is_whole", plain)
        label_cache.label_cache(store)
        monkeypatch.setattr(label_cache, "_unpack", lambda *given: unpacked.append(given))
        return found

    monkeypatch.setattr(label_cache, "_is_whole", beaten)
    cache = label_cache.label_cache(store)
    assert unpacked == []
    np.testing.assert_array_equal(cache["000.png"].word_ids, store["000.png"].word_ids)


def test_an_interrupted_unpacking_leaves_nothing(
    store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "ids", property(lambda store: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            label_cache.label_cache(store, tmp_path / "unpacked")
    assert not list((tmp_path / "unpacked").iterdir())
    half = tmp_path / "unpacked" / f".{label_cache.label_cache(store).folder.name}.{host()}.{DEAD}.0"
    half.mkdir()
    (half / "words.npy").write_bytes(b"of a killed process")
    assert len(label_cache.label_cache(store, tmp_path / "unpacked")) == 69
    assert not half.exists()


def test_other_labels_are_another_cache(store: LabelStore, label: Label, tmp_path: Path) -> None:
    label(images=str(tmp_path / "photos"), top_n=2, out=tmp_path / "two", max_bad=1)
    other = label_cache.label_cache(open_labels(tmp_path / "two"))
    assert other.folder != label_cache.label_cache(store).folder
    assert other["006.png"].word_ids.shape == (12, 2)


def test_a_pickle_holds_no_labels_and_reads_the_same(store: LabelStore) -> None:
    cache = label_cache.label_cache(store)
    cache["006.png"]
    pickled = pickle.dumps(cache)
    assert len(pickled) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(_first_words, (cache,))
    assert there == _first_words(pickle.loads(pickled)) == store["006.png"].word_ids.tolist()


def _first_words(cache: label_cache.LabelCache) -> list[list[int]]:
    words: list[list[int]] = cache["006.png"].word_ids.tolist()
    return words


def test_a_folder_that_cannot_be_made_is_a_clear_line(store: LabelStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        label_cache.label_cache(store, tmp_path / "file" / "below")

"""Labels as readers have them: unpacked, in this process and in others; of schema version 1, with float16 scores."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sea_pipeline import LabelStore, label_cache, open_labels
from sea_pipeline.core import progress
from sea_pipeline.core.errors import UserError
from sea_pipeline.labels.format import ROWS_PER_GROUP
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage import parquet
from sea_pipeline.storage.hashing import file_sha256
from sea_pipeline.storage.scratch import host
from tests.support.contents import content
from tests.support.damage import Harm, changed, flip, made_a_folder, without
from tests.support.heard import Heard, waited_for
from tests.support.kills import DEAD
from tests.support.old_labels import made_old
from tests.support.programs import FORKS
from tests.support.world import Label, Shelved, draw_but_one, draw_folder


@pytest.fixture
def seventy(shelved: Shelved) -> Path:
    return shelved(70, top_n=8, shard_size=40, max_bad=1)


@pytest.fixture
def store(seventy: Path) -> LabelStore:
    return open_labels(seventy / "labels")


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


def test_a_shards_footer_is_parsed_once(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A footer grows with the shard's rows, so to parse it for each row would take quadratic time."""
    opened, shards = Mock(wraps=parquet._parquet_file), len(store.manifest["shards"])
    monkeypatch.setattr(parquet, "_parquet_file", opened)
    ids = store.ids[::-9]
    assert ids[0] in store

    def parsed() -> int:
        return sum(len(call.args) == 1 for call in opened.call_args_list)

    assert sum(len(table) for table in store.tables()) == len(store)
    alike = [(store[image_id].scores, store.image_sha256(image_id)) for image_id in (*ids, *ids[::-1])]
    assert parsed() == shards
    monkeypatch.setattr(parquet, "_KEPT_GROUPS", 1)
    again = pickle.loads(pickle.dumps(store))
    for image_id, (scores, sha256) in zip((*ids, *ids[::-1]), alike, strict=True):
        assert np.array_equal(again[image_id].scores, scores)
        assert again.image_sha256(image_id) == sha256
    assert parsed() == 3 * shards - 1, "one footer is kept, and the shards are asked there and back"


def test_a_shard_that_was_written_again_is_read_again(seventy: Path, tmp_path: Path) -> None:
    """Another version of a library, or of its settings, may have mended it, with other bytes of the same rows."""
    store = open_labels(shutil.copytree(seventy / "labels", tmp_path / "labels"))
    path = store.path / store.manifest["shards"][0]["path"]
    found = {image_id: store[image_id].scores for image_id in store}
    pq.write_table(pq.read_table(path), tmp_path / "new", compression="none", row_group_size=ROWS_PER_GROUP)
    (tmp_path / "new").rename(path)
    for image_id in reversed(store.ids):
        assert np.array_equal(store[image_id].scores, found[image_id])


def test_it_is_said_if_it_takes_long(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, plain = Heard(), label_cache._is_whole

    def looked(folder: Path) -> bool:
        waited_for(lambda: heard.lines[-1].startswith("checking the unpacked"))
        return plain(folder)

    @contextmanager
    def taken(_: Path) -> Iterator[None]:
        waited_for(lambda: heard.lines[-1].startswith("waiting for"))
        yield

    monkeypatch.setattr(progress, "SLOW", 0)
    monkeypatch.setattr(label_cache, "_is_whole", looked)
    monkeypatch.setattr(label_cache, "locked", taken)
    open_labels(store.path, reporter=heard)
    folder = label_cache.label_cache(store, reporter=heard).folder
    assert [line.split(" done")[0] for line in heard.lines] == [
        f"checking the shards of {store.path}: 1 of 2",
        f"checking the unpacked labels in {folder}: 0 s so far",
        f"waiting for a process that unpacks labels to {folder.parent}: 0 s so far",
        "unpacking labels: 32 of 69",
    ]


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_unpacked_labels_that_changed_places_are_unpacked_again(
    store: LabelStore, shelved: Shelved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of earlier versions do not say what they were unpacked for."""
    stores = store, open_labels(shelved(4, top_n=4, max_bad=1) / "labels")
    one, other = (label_cache.label_cache(each, tmp_path).folder for each in stores)
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    for each in stores:
        assert label_cache.label_cache(each, tmp_path).ids == each.ids
    without(one / "files.json", "manifest")
    monkeypatch.setattr(label_cache, "_unpack", None)
    assert label_cache.label_cache(store, tmp_path).ids == store.ids


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


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_line(seventy: Path, tmp_path: Path) -> None:
    """A process that writes to a mapped file is killed by the system then."""
    (tmp_path / "disk").mkdir()
    program = (
        "import sys; from sea_pipeline import label_cache, open_labels\n"
        "from sea_pipeline.core.errors import UserError\n"
        "try: label_cache.label_cache(open_labels(sys.argv[1]), sys.argv[2])\n"
        "except UserError as error: print(error)\n"
    )
    small = 'mount -t tmpfs -o size=28k tmpfs "$0" && exec "$@"'
    apart = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*apart, small, tmp_path / "disk", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a system that lets a test mount a small disk")
    command = [*apart, small, tmp_path / "disk", sys.executable, "-c", program, seventy / "labels", tmp_path / "disk"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be written: No space left on device; free some space" in done.stdout


@pytest.mark.slow
def test_a_pickle_holds_no_labels_and_reads_the_same(store: LabelStore) -> None:
    cache = label_cache.label_cache(store)
    cache["006.png"]
    pickled = pickle.dumps(cache)
    assert len(pickled) < 1000
    with FORKS.Pool(1) as pool:
        there = pool.apply(_first_words, (cache,))
    assert there == _first_words(pickle.loads(pickled)) == store["006.png"].word_ids.tolist()


def _first_words(cache: label_cache.LabelCache) -> list[list[int]]:
    words: list[list[int]] = cache["006.png"].word_ids.tolist()
    return words


def test_a_folder_that_cannot_be_made_is_a_clear_line(store: LabelStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        label_cache.label_cache(store, tmp_path / "file" / "below")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_but_one(tmp_path / "photos", 9)


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
    caches = [label_cache.label_cache(each, tmp_path / name) for each, name in ((one, "one"), (other, "other"))]
    for ours, theirs in [(one, other), caches, (caches[0], one)]:
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


@pytest.mark.slow
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

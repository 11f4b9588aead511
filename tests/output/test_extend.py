"""`--extend`: new images become shards behind those that are there, which stay as they are to the byte."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from sea_pipeline import label_cache, open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import MARK
from sea_pipeline.join.select import select
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import DatasetFile
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage import publish
from tests.support.contents import content, rows, stored
from tests.support.kills import killed_around
from tests.support.photo_forms import write_folder, write_parquet, write_tar, write_tars
from tests.support.programs import Begin, labelling
from tests.support.refused import refused
from tests.support.world import ColourEncoder, Label, draw_folder, draw_growing, grow


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_growing(tmp_path / "photos")


@pytest.fixture
def extended(label: Label, shelf: Path, tmp_path: Path) -> Path:
    """Sixteen `photos`; labels of ten `before`, extended by the others `after`; the `cache`: to be read alone."""
    root = shelf / "extended"
    if not root.exists():
        photos = draw_growing(root / "photos")
        label(images=str(photos), out=root / "before")
        shutil.copytree(root / "before", root / "after")
        grow(photos)
        label(images=str(photos), out=root / "after", extend=True)
        shutil.copytree(tmp_path / "cache", root / "cache")
    return root


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All files with their bytes and times, but for what is temporary."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".tmp" not in path.parts]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_only_new_images_are_labelled_and_old_files_stay(
    label: Label, encoder: ColourEncoder, photos: Path, tmp_path: Path
) -> None:
    label(images=str(photos))
    before = everything(tmp_path / "labels")
    first = open_labels(tmp_path / "labels")
    first_means = first.mean_similarity()
    grow(photos)
    run = label(images=str(photos), extend=True)
    assert run.report.images == 6
    after = everything(tmp_path / "labels")
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {
        "dataset.json", "manifest.json", "words.parquet", "plan-00001.parquet",
        "labels/part-00003-of-00005.parquet", "labels/part-00004-of-00005.parquet",
        "commits/00003.json", "commits/00004.json",
    }  # fmt: skip
    assert before.keys() - after.keys() == set()
    label(images=str(photos), out=tmp_path / "whole")
    store, whole = open_labels(tmp_path / "labels"), open_labels(tmp_path / "whole")
    assert rows(store) == rows(whole)
    assert store.ids == [*first.ids, "012.png", "015.png", "a/001.png", "a/004.png", "a/007.png", "b/008.png"]
    np.testing.assert_allclose(store.mean_similarity(), whole.mean_similarity(), rtol=0, atol=1e-6)
    assert np.abs(first_means - store.mean_similarity()).max() > 1e-3
    assert store.fingerprint == first.fingerprint
    assert check_files(Ledger.open(tmp_path / "labels")).problems == []
    assert rows(first).keys() < rows(store).keys()  # a reader that was there before goes on
    caches = [label_cache.label_cache(each) for each in (first, store)]
    assert [len(cache) for cache in caches] == [10, 16]
    assert caches[1]["a/001.png"].word_ids.tolist() == whole["a/001.png"].word_ids.tolist()


def test_a_folder_that_is_not_extended_looks_as_before(extended: Path) -> None:
    written = json.loads((extended / "before" / "dataset.json").read_text())
    assert set(written) == set(DatasetFile.model_fields) - {"parts"}
    written = json.loads((extended / "after" / "dataset.json").read_text())
    assert (written["images"], written["shards"]) == (16, 5)
    assert [(part["images"], part["shards"], part["fields"]) for part in written["parts"]] == [(10, 3, {}), (6, 2, {})]


def test_without_extend_it_is_refused_and_with_it_done(label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=str(photos))
    before = everything(tmp_path / "labels")
    grow(photos)
    with pytest.raises(UserError, match=r"new images: 6 \(such as '012\.png'\); add it with --extend, or choose"):
        label(images=str(photos))
    assert everything(tmp_path / "labels") == before
    with refused(match=r"new images: 6 .*; add all that is new with --extend and no --limit, or choose"):
        label(images=str(photos), limit=20)
    label(images=str(photos), extend=True)
    assert len(open_labels(tmp_path / "labels")) == 16


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"top_n": 2}, "top_n: 3 there, 2 asked for; new images: 6"),
        ({"shard_size": 5}, "shard_size: 4 there, 5 asked for"),
        ({"limit": 20}, "--limit 20: not with --extend"),
    ],
)
def test_other_settings_are_no_extension(
    label: Label, photos: Path, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    label(images=str(photos))
    before = everything(tmp_path / "labels")
    grow(photos)
    with refused(expected):
        label(images=str(photos), extend=True, **change)
    assert everything(tmp_path / "labels") == before


def test_images_that_are_gone_or_others_now_are_refused(label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=str(photos))
    before = everything(tmp_path / "labels")
    grow(photos)
    held = (photos / "000.png").read_bytes()
    (photos / "000.png").unlink()
    with pytest.raises(UserError, match=r"cannot be extended.*new images: 6.*gone: 1 \(such as '000\.png'\)"):
        label(images=str(photos), extend=True)
    (photos / "000.png").write_bytes((photos / "003.png").read_bytes())
    with pytest.raises(UserError, match=r"'000\.png' was another one when this folder was begun"):
        label(images=str(photos), extend=True)
    assert everything(tmp_path / "labels") == before
    (photos / "000.png").write_bytes(held)
    assert label(images=str(photos), extend=True).report.images == 6


def test_nothing_new_is_nothing_to_do(label: Label, encoder: ColourEncoder, photos: Path, tmp_path: Path) -> None:
    label(images=str(photos), extend=True)  # begins the folder
    grow(photos)
    label(images=str(photos), extend=True)
    before = everything(tmp_path / "labels")
    encoder.patches = encoder.words = None  # type: ignore[method-assign,assignment]  # must not be called
    for extend in (True, False):
        assert label(images=str(photos), extend=extend).report.images == 0
    assert everything(tmp_path / "labels") == before


def test_an_unfinished_folder_is_extended_and_the_old_half_is_never_read_as_all(
    label: Label, encoder: ColourEncoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(images=str(photos))
    out = tmp_path / "labels"
    grow(photos)
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "patches", Mock(side_effect=RuntimeError("no kernel image")))
        assert label(images=str(photos), extend=True).report.failed.keys() == {3, 4}
    said = r"3 of 5 shards are done; run the same `label --extend` command again"
    with pytest.raises(ValueError, match=said):
        open_labels(out)
    ledger = Ledger.open(out)
    assert (ledger.finished, ledger.complete, ledger.missing()) == (False, False, [3, 4])
    assert check_files(ledger).problems == []
    draw_folder(photos / "z", 2, seed=3)
    assert label(images=str(photos), extend=True).report.images == 8
    assert [commit.shard for commit in Ledger.open(out).commits()] == [0, 1, 2, 3, 4, 5]
    assert len(open_labels(out)) == 18


def test_commits_belong_to_their_part(extended: Path, tmp_path: Path) -> None:
    ledger = Ledger.open(shutil.copytree(extended / "after", tmp_path / "labels"))
    plans = [commit.plan for commit in ledger.commits()]
    assert len({*plans[:3]}) == len({*plans[3:]}) == 1
    assert len({*plans}) == 2
    path = tmp_path / "labels" / "commits" / "00004.json"
    path.write_text(path.read_text().replace(plans[4], plans[0]))
    assert ledger.missing() == [4]


def test_what_was_accepted_is_not_taken_back(label: Label, photos: Path, tmp_path: Path) -> None:
    """One bad image of ten is allowed, though it is a quarter of its shard."""
    held = (photos / "003.png").read_bytes()
    (photos / "003.png").write_bytes(b"")
    label(images=str(photos))
    before = everything(tmp_path / "labels")
    (photos / "003.png").write_bytes(held)
    grow(photos)
    assert label(images=str(photos), extend=True).report.images == 6
    after = everything(tmp_path / "labels")
    assert after["commits/00000.json"] == before["commits/00000.json"]
    assert [bad["image_id"] for bad in open_labels(tmp_path / "labels").quarantine()] == ["003.png"]
    opened_before = open_labels(tmp_path / "labels")
    assert "000.png" in opened_before
    assert label(images=str(photos), retry_bad=True).report.images == 4
    assert len(open_labels(tmp_path / "labels")) == 16
    with pytest.raises(UserError, match=r"00003\.parquet: has changed since"):  # it gives no neighbour's row
        opened_before["000.png"]
    assert open_labels(tmp_path / "labels")["000.png"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
@pytest.mark.parametrize("call", range(1, 9))
def test_a_kill_around_any_rename_of_an_extension_loses_nothing(
    label: Label, extended: Path, tmp_path: Path, moment: str, call: int
) -> None:
    """Plan, dataset, 2 x (data, commit), words.parquet, manifest; nothing goes to the cache, which has the words."""
    photos, out = str(extended / "photos"), shutil.copytree(extended / "before", tmp_path / "labels")
    shutil.copytree(extended / "cache", tmp_path / "cache", dirs_exist_ok=True)
    with killed_around(publish, "_put_in_place", call, before=moment == "before the rename"):
        label(images=photos, extend=True)
    happened = call - (moment == "before the rename")
    if 2 <= happened < 8:
        with pytest.raises(UserError, match="run the same `label --extend` command again"):
            open_labels(out)
    else:
        assert len(open_labels(out)) == (16 if happened == 8 else 10)
    label(images=photos, extend=True)
    assert stored(str(out)) == stored(str(extended / "after"))


def test_a_plan_that_was_not_taken_up_does_not_count(label: Label, extended: Path, tmp_path: Path) -> None:
    """Killed between plan and dataset; then still more images come."""
    out = shutil.copytree(extended / "before", tmp_path / "labels")
    (out / "plan-00001.parquet").write_bytes(b"of a killed process")
    label(images=str(extended / "photos"), extend=True)
    assert content(out) == content(extended / "after")


def test_two_extensions_at_once_do_no_harm(extended: Path, tmp_path: Path, words: Path, program: Begin) -> None:
    out = shutil.copytree(extended / "before", tmp_path / "both")
    command = labelling(extended / "photos", words, out, "--shard-size", 4, "--extend")
    both = [program(*command) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert all(said in process.stdout for process in both for said in ("16 labelled, 0 bad", "5 of 5 done"))
    assert content(out) == content(extended / "after")


def test_parts_that_do_not_add_up_are_damage(extended: Path, tmp_path: Path) -> None:
    path = shutil.copytree(extended / "after", tmp_path / "labels") / "dataset.json"
    path.write_text(path.read_text().replace('"images": 6', '"images": 7'))
    with pytest.raises(ValueError, match=r"dataset\.json: damaged: its parts do not add up"):
        open_labels(path.parent)


def test_the_commands_know_extended_folders(command: Any, extended: Path) -> None:
    out = extended / "after"
    state = json.loads(command("status", out, "--json")[1])
    assert (state["finished"], state["shards"], state["images_done"]) == (True, 5, 16)
    assert command("verify", out)[0] == 0
    assert json.loads(command("inspect", out, "--json")[1])["images"] == 16
    assert json.loads(command("inspect", out, "a/001.png", "--json")[1])["grid"] == [3, 4]


def drawn(folder: Path, count: int, seed: int) -> dict[str, bytes]:
    return {
        f"{number}.png": path.read_bytes()
        for number, path in enumerate(sorted(draw_folder(folder, count, seed).rglob("*.png")))
    }


def table(folder: Path, name: str, photos: dict[str, bytes]) -> Path:
    return write_parquet(folder / f"{name}.parquet", photos, plain=True, caption=["x"] * len(photos))


def tar(folder: Path, name: str, photos: dict[str, bytes]) -> Path:
    return write_tar(folder / f"{name}.tar", photos)


@pytest.mark.parametrize(
    ("write", "old", "new", "crops"), [(table, "00000000{}", "b.parquet/00000000{}", 1), (tar, "{}.png", "b/{}.png", 0)]
)
def test_a_further_file_leaves_the_ids_of_the_first(
    label: Label, tmp_path: Path, write: Any, old: str, new: str, crops: int
) -> None:
    """Rows without ids, and members of one name in two tars, get the file's name in front, but not the planned ones."""
    images, first = tmp_path / "in", drawn(tmp_path / "one", 3, 1)
    one = write(images, "a", first)
    label(images=str(one), crops=crops)
    before = everything(tmp_path / "labels")
    write(images, "b", drawn(tmp_path / "two", 2, 2))
    with pytest.raises(UserError, match=r"was begun with less: new images: .*; add it with --extend"):
        label(images=str(images), crops=crops)
    assert label(images=str(images), crops=crops, extend=True).report.images == 2 * (1 + crops)
    after = everything(tmp_path / "labels")
    assert all(after[name] == before[name] for name in before if name.startswith(("labels/", "commits/", "plan.p")))
    store = open_labels(tmp_path / "labels")
    assert [each for each in store.ids if MARK not in each] == [old.format(n) for n in range(3)] + [
        new.format(n) for n in range(2)
    ]
    write(images, "c", drawn(tmp_path / "three", 2, 3))
    assert label(images=str(images), crops=crops, extend=True).report.images == 2 * (1 + crops)
    assert label(images=str(images), crops=crops).report.images == 0
    assert check_files(Ledger.open(tmp_path / "labels")).problems == []


def test_another_first_file_is_no_extension(label: Label, tmp_path: Path) -> None:
    images = tmp_path / "in"
    label(images=str(table(images, "a", drawn(tmp_path / "one", 3, 1))))
    table(images, "a", drawn(tmp_path / "two", 3, 7))
    table(images, "b", drawn(tmp_path / "two", 3, 7))
    with refused("was another one when this folder was begun"):
        label(images=str(images), extend=True)


def test_ids_of_another_kind_are_named(label: Label, tmp_path: Path) -> None:
    """Rows had ids of their own, which the second file has, too, so that they are no ids any more."""
    images, photos = tmp_path / "in", drawn(tmp_path / "one", 3, 1)
    write_parquet(images / "a.parquet", photos, plain=True, image_id=list(photos))
    label(images=str(images / "a.parquet"))
    write_parquet(images / "b.parquet", photos, plain=True, image_id=list(photos))
    with refused("images that are gone: 3 (such as '0.png'); every id is another, as the ids are row numbers now"):
        label(images=str(images), extend=True)


@pytest.mark.slow
def test_captions_that_have_grown_need_the_folders_own_words(label: Label, photos: Path, tmp_path: Path) -> None:
    """The advice is followed to the letter."""
    data = tmp_path / "photos.json"

    def captions(*texts: str) -> None:
        names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
        turns = [[{"from": "human", "value": "What?"}, {"from": "gpt", "value": text}] for text in texts]
        rows = [{"image": name, "conversations": turns[n % len(turns)]} for n, name in enumerate(names)]
        data.write_text(json.dumps(rows))

    given = {"images": str(data), "image_root": photos, "extend": True, "probe": False}
    captions("a red bus and a dog")
    label(**given, wordlist=f"mine:{data}")
    grow(photos)
    captions("a red bus and a dog", "a zebra in the grass")
    with pytest.raises(UserError) as error:
        label(**given, wordlist=f"mine:{data}")
    line = str(error.value)
    assert "Differing: wordlist.sha256: " in line
    advice = re.search(r"; --wordlist (\S+) takes the words that it was begun with$", line)
    assert advice, line
    assert label(**given, wordlist=advice[1]).report.images == 6


def a_record(folder: Path, photos: dict[str, bytes]) -> tuple[dict[str, Any], Callable[[], object]]:
    write_folder(folder / "photos", photos)
    records: list[dict[str, Any]] = [{"image": name, "conversations": []} for name in photos]
    data = folder / "data.json"
    data.write_text(json.dumps([*records[:-1], records[-1] | {"image_path": "x.jpg"}]))
    return {"images": str(data), "image_root": folder / "photos"}, lambda: data.write_text(json.dumps(records))


def a_cut_tar(folder: Path, photos: dict[str, bytes]) -> tuple[dict[str, Any], Callable[[], object]]:
    images = write_tars(folder / "tars", photos, 2)
    last = max(images.iterdir())
    whole = last.read_bytes()
    last.write_bytes(whole[:1100])
    return {"images": str(images)}, lambda: last.write_bytes(whole)


def a_name(folder: Path, photos: dict[str, bytes]) -> tuple[dict[str, Any], Callable[[], object]]:
    odd, good = folder / os.fsdecode(b"\xe9.png"), max(photos)
    write_folder(folder, photos)
    (folder / good).rename(odd)
    return {"images": str(folder)}, lambda: odd.rename(folder / good)


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [a_record, a_cut_tar, a_name])
def test_what_a_listing_found_wrong_is_added_when_it_is_mended(
    label: Label, tmp_path: Path, damaged: Callable[..., tuple[dict[str, Any], Callable[[], object]]]
) -> None:
    """As the line says: with --extend. What was bad stays in the quarantine, once."""
    given, mend = damaged(tmp_path / "in", drawn(tmp_path / "drawn", 6, 1))
    label(**given, max_bad=0.5)
    before, out = everything(tmp_path / "labels"), tmp_path / "labels"
    bad = list(open_labels(out).quarantine())
    assert {each["stage"] for each in bad} == {"list"}
    mend()
    with refused("was begun with less: new images", match="add it with --extend"):
        label(**given, retry_bad=True)
    with killed_around(publish, "_put_in_place", 3, before=True):
        label(**given, extend=True, max_bad=0.5)
    assert label(**given, extend=True, max_bad=0.5).report.images > 0
    after = everything(out)
    assert all(after[name] == before[name] for name in before if name.startswith(("labels/", "commits/", "plan.p")))
    label(**given, out=tmp_path / "whole")
    assert rows(open_labels(out)) == rows(open_labels(tmp_path / "whole"))
    for more in ({}, {"retry_bad": True}, {"extend": True}):
        label(**given, **more, max_bad=0.5)
        assert list(open_labels(out).quarantine()) == bad
    assert check_files(Ledger.open(out)).problems == []
    made = select(str(out), open_labels(out).ids, str(tmp_path / "chosen"))
    assert (made.images, rows(open_labels(tmp_path / "chosen"))) == (6, rows(open_labels(out)))

"""What systems leave behind is left out of inputs, with a count, and does no harm in outputs."""

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.execution.shard import log_attempt
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.status import failing_shards
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage.leftovers import LEFTOVERS, files_like, is_leftover
from sea_pipeline.storage.paths import place
from sea_pipeline.storage.publish import publish_folder
from tests.support.contents import content, read_all
from tests.support.photo_forms import copy_to, photos_in, write_parquet, write_tar
from tests.support.world import Label, draw_folder

LEFT = [
    "._000.png", "._.DS_Store", "._a", ".DS_Store", "Icon\r", ".localized", ".fseventsd/0000.png", ".Trashes/501/x.png",
    ".Spotlight-V100/store.png", ".TemporaryItems/x.png", "__MACOSX/a/x.png", ".AppleDouble/000.png",
    "Thumbs.db", "thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", "$RECYCLE.BIN/S-1/x.png",
    "System Volume Information/x.png", "lost+found/#1234.png", ".nfs00000000034a1b2c00000001", ".fuse_hidden0000a1.png",
    ".Trash-1000/files/x.png", ".Trash/x.png", ".directory", ".smbdeleteAAA1.png", "@eaDir/x.png/SYNOPHOTO_THUMB_M.jpg",
    "#recycle/x.png", "@Recycle/x.png", ".@__thumb/x.png", "_temporary/0/x.png", "_SUCCESS", "_committed_123",
    ".part-0.crc", "x_$folder$", ".gitkeep", ".keep", ".ipynb_checkpoints/x-checkpoint.png", "000.png~",
    ".000.png.swp", ".000.png.swo", ".#000.png", "#000.png#", "~$photos.png", ".~lock.list.csv#", ".~tmp~/000.png",
]  # fmt: skip
KEPT = [".hidden.png", "_x.png", ".x/y.png", "Thumbs.png", "lost.png", "temporary/x.png", "x~y.png", "@x.png", "~.png"]


def test_what_is_left_behind_and_what_is_not() -> None:
    assert [name for name in LEFT if not (is_leftover(name) and is_leftover(f"a/b/{name}"))] == []
    kept = [*KEPT, "x.crc", "dataset.json", "part-00000-of-00001.parquet", "a/00000.json", ""]
    assert [name for name in kept if is_leftover(name)] == []


def litter(folder: Path) -> None:
    """Leaves behind what systems do, as files and in folders."""
    for name in LEFT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"left behind")


@pytest.mark.parametrize("form", ["folder", "tar", "tars", "tars *", "tables"])
@pytest.mark.parametrize("root", ["", "memory://"])
def test_an_input_is_the_same_with_it_and_without(tmp_path: Path, form: str, root: str, empty_memory: None) -> None:
    photos = {name: name.encode() for name in ("000.png", "a/001.png", *KEPT)}
    folder = tmp_path / "input"
    folder.mkdir()
    if form == "tar":
        write_tar(folder / "x.tar", photos | dict.fromkeys(LEFT, b"left behind"))
    elif form.startswith("tars"):
        write_tar(folder / "0.tar", dict(list(photos.items())[:5]))
        write_tar(folder / "1.tar", dict(list(photos.items())[5:]))
        (folder / "._0.tar").write_bytes(b"left behind")
    elif form == "tables":
        write_parquet(folder / "0.parquet", photos)
        (folder / "._0.parquet").write_bytes(b"left behind")
        (folder / "_temporary").mkdir()
        write_parquet(folder / "_temporary" / "1.parquet", photos)
    else:
        for name, data in photos.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
    if form not in ("tar", "tars *"):
        litter(folder)
    asked = str(folder)
    if root:
        copy_to(f"{root}input", folder)
        asked = f"{root}input"
    listing = list_samples(asked + {"tar": "/x.tar", "tars *": "/*.tar"}.get(form, ""))
    assert read_all(listing) == photos
    if form in ("folder", "tar"):
        assert listing.notes == {LEFTOVERS: len(LEFT)}
    elif form != "tars *":
        assert listing.notes[LEFTOVERS] > len(LEFT)


def test_a_folder_of_systems_that_cannot_be_listed_is_counted_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path / "photos", 2)
    (tmp_path / "photos" / "lost+found").mkdir()
    (tmp_path / "photos" / "closed").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if isinstance(path, bytes) and path.endswith((b"lost+found", b"closed")):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    listing = list_samples(str(tmp_path / "photos"))
    assert listing.notes == {LEFTOVERS: 1, "folders that cannot be listed": 1}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = draw_folder(tmp_path / "photos", 9)
    (folder / "b" / "zzz.png").write_bytes(b"no image")
    return folder


def test_a_new_output_folder_may_hold_it(label: Label, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    out.mkdir()
    litter(out)
    assert label(images=str(photos), max_bad=0.5).report.images == 9
    assert len(open_labels(out)) == 9
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    (tmp_path / "other" / ".DS_Store").touch()
    with pytest.raises(UserError, match=r"found 'notes\.txt' in it"):
        label(images=str(photos), max_bad=0.5, out=tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("root", ["", "memory://"])
def test_in_an_output_folder_it_does_no_harm(
    label: Label, command: Any, photos: Path, tmp_path: Path, root: str, empty_memory: None
) -> None:
    out: Any = f"{root}labels" if root else tmp_path / "labels"
    label(images=str(photos), max_bad=0.5, out=out)
    log_attempt(Ledger.open(place(out)), 1, 1, "a fault\n")
    expected = {} if root else content(out)
    names = [*LEFT, "._00000.json", "00000.json~", ".00000.json.swp", "00001-attempt-1.log~", "._00001-attempt-1.log"]
    for folder in ("", "commits/", "labels/", "quarantine/", "logs/", ".tmp/"):
        for name in names:
            files, top = fsspec.core.url_to_fs(str(out))
            path = f"{top}/{folder}{name}"
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
            files.pipe_file(path, b"left behind")
    ledger = Ledger.open(place(out))
    assert check_files(ledger).problems == []
    assert (ledger.done().shards, failing_shards(ledger)) == (3, {})
    assert len(open_labels(out)) == 9
    for arguments in (("verify", out), ("status", out), ("inspect", out), ("inspect", out, "000.png")):
        code, _, said = command(*arguments)
        assert (code, "damaged" in said) == (0, False), (arguments, said)
    assert label(images=str(photos), max_bad=0.5, out=out).report.images == 0
    expected |= {f"{folder}{name}": b"left behind" for folder in ("", "labels/", "quarantine/") for name in names}
    assert root or content(out) == expected


def test_a_folder_that_is_published_whole_takes_its_place(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    litter(out)
    with publish_folder(out) as scratch:
        (scratch / "config.json").write_text("{}")
    assert json.loads((out / "config.json").read_text()) == {}
    assert (out / ".gitkeep").exists()
    assert files_like(out, "*") == [out / "config.json"]
    with pytest.raises(UserError, match="expected a new or an empty folder"), publish_folder(out):
        pass


def test_other_inputs_are_still_refused_beside_it(tmp_path: Path) -> None:
    litter(tmp_path / "photos")
    with pytest.raises(UserError, match=rf"expected images, found none \(left out: {LEFTOVERS}: {len(LEFT)}\)"):
        list_samples(str(tmp_path / "photos"))


def test_images_in_a_folder_that_is_asked_for_by_such_a_name_are_images(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "lost+found" / "__MACOSX", 3)
    assert list(read_all(list_samples(str(folder)))) == list(photos_in(folder))

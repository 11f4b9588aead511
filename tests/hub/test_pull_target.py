"""The folder that a pull fills: one that is taken, empty, a link, a mount point, or the one that a shell is in."""

import errno
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sea_pipeline.hub import pull as pulling
from sea_pipeline.hub.pull import pull
from tests.hub.helpers import NAME, clients_own, fetched, left_beside, own
from tests.hub.stand_in import Hub
from tests.support.contents import files_in
from tests.support.damage import flip, made_a_folder
from tests.support.kills import killed_around
from tests.support.refused import refuses
from tests.support.world import Label

pytestmark = [clients_own, pytest.mark.usefixtures("pushed")]


def test_a_folder_that_holds_something_else_is_refused(
    command: Any, label: Label, labels: Path, tmp_path: Path
) -> None:
    label(images=str(tmp_path / "photos"), out=tmp_path / "n2", top_n=2, max_bad=1.0)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for out in ("n2", "taken", "file"):
        said = f"{tmp_path / out}: expected no such folder, or the same one; found something else; choose another"
        refuses(command, said, "pull", NAME, "--out", tmp_path / out)
    (tmp_path / "empty").mkdir()
    assert command("pull", NAME, "--out", tmp_path / "empty")[0] == 0
    shard = next((tmp_path / "empty" / "labels").glob("part-00001-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    said = refuses(command, "damaged: expected sha256", "pull", NAME, "--out", tmp_path / "empty")
    assert f"remove {tmp_path / 'empty'}, and pull it again" in said
    shutil.rmtree(tmp_path / "empty")
    assert command("pull", NAME, "--out", tmp_path / "empty")[0] == 0
    assert files_in(tmp_path / "empty") == own(labels)
    for record, harm in (("manifest.json", partial(flip, offset=30)), ("dataset.json", Path.unlink)):
        held = (tmp_path / "empty" / record).read_bytes()
        harm(tmp_path / "empty" / record)
        said = f"damaged {record}; choose another --out, or remove {tmp_path / 'empty'}, and pull it again"
        refuses(command, said, "pull", NAME, "--out", tmp_path / "empty")
        (tmp_path / "empty" / record).write_bytes(held)
    assert command("pull", NAME, "--out", tmp_path / "empty")[0] == 0


@pytest.mark.parametrize("form", ["leftovers", "link", "dangling link", "here"])
def test_an_empty_folder_of_any_kind_is_filled(
    command: Any, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    out, real = tmp_path / "out", tmp_path / "empty"
    real.mkdir()
    if form == "leftovers":
        for name in (".DS_Store", ".gitkeep"):
            (real / name).write_bytes(b"left")
        out = real
    elif form.endswith("link"):
        out.symlink_to(real)
        if form == "dangling link":
            real.rmdir()
    else:
        monkeypatch.chdir(real)
        out = Path()
    code, _, stderr = command("pull", NAME, "--out", out)
    assert (code, "Traceback" in stderr) == (0, False), stderr
    left = {".DS_Store": b"left", ".gitkeep": b"left"} if form == "leftovers" else {}
    assert files_in(real) == own(labels) | left
    assert f"to {out}" in stderr
    assert ("`cd .`" in stderr) == (form == "here")
    assert left_beside(tmp_path) == []
    assert command("pull", NAME, "--out", out)[0] == command("verify", out)[0] == 0


def test_a_folder_that_cannot_be_replaced_is_refused_before_anything_is_fetched(
    command: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mount point is; the folder that its line advises works."""
    mount, plain = tmp_path / "mount", Path.replace
    mount.mkdir()
    (mount / ".DS_Store").write_bytes(b"left")

    def replace(path: Path, target: Path) -> Path:
        if target == mount:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path), None, str(target))
        return plain(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    before = len(fetched(hub))
    said = f"{mount}: cannot be written: Device or resource busy; choose another folder"
    refuses(command, said, "pull", NAME, "--out", mount)
    assert not [path for path in fetched(hub)[before:] if ".parquet" in path]
    assert files_in(mount) == {".DS_Store": b"left"}
    assert left_beside(tmp_path) == []
    assert command("pull", NAME, "--out", mount / "labels")[0] == 0


def test_a_folder_in_the_place_of_a_file_on_its_way_is_replaced(labels: Path, tmp_path: Path) -> None:
    with killed_around(pulling, "_settle", 1, before=True):
        pull(NAME, tmp_path / "out")
    made_a_folder(next((tmp_path / ".out.pulling" / "labels").iterdir()))
    assert pull(NAME, tmp_path / "out").fetched == 1
    assert files_in(tmp_path / "out") == own(labels)


def test_leftovers_survive_a_kill(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".gitkeep").write_bytes(b"left")
    with killed_around(pulling, "replace_folder", 1, before=True):
        pull(NAME, tmp_path / "out")
    (tmp_path / "out" / ".gitkeep").replace(tmp_path / ".out.pulling" / ".gitkeep")  # and killed once it had moved
    pull(NAME, tmp_path / "out")
    assert files_in(tmp_path / "out") == own(labels) | {".gitkeep": b"left"}

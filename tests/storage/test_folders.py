"""Folders that appear whole, are on disk by then, and go in one step; and whose unfinished ones are swept."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.labels.checks import check_out
from sea_pipeline.labels.settings import LabelSettings
from sea_pipeline.storage import publish as publishing
from sea_pipeline.storage import scratch
from sea_pipeline.storage.publish import make_folder, publish, publish_folder, remove_folder, writing
from sea_pipeline.storage.results import publish_result
from sea_pipeline.storage.scratch import scratch_beside, scratch_name
from tests.support.kills import DEAD, Killed


def test_a_folder_is_on_disk_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "model", dict[str, bool]()
    plain = publishing.sync

    def sync(one: Path) -> None:
        synced[one.name] = path.exists()
        plain(one)

    monkeypatch.setattr(publishing, "sync", sync)
    with publish_folder(path) as scratch:
        (scratch / "in").mkdir()
        (scratch / "in" / "weights").write_bytes(b"x")
    assert synced == {"weights": False, "in": False, scratch.name: False, tmp_path.name: True}


@pytest.mark.parametrize("is_there", [True, False])
def test_the_folder_that_a_link_leads_to_appears(tmp_path: Path, is_there: bool) -> None:
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.parent.mkdir()
    if is_there:
        real.mkdir()
    link.symlink_to(real)
    with publish_folder(link) as scratch:
        (scratch / "weights").write_bytes(b"x")
    assert (link.is_symlink(), (real / "weights").read_bytes()) == (True, b"x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "link", "real", "weights"]


def test_a_link_to_nothing_is_followed_and_one_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("disk/real")
    (tmp_path / "self").symlink_to("self")
    make_folder(tmp_path / "link")
    make_folder(tmp_path / "link" / "in")
    assert (tmp_path / "disk" / "real" / "in").is_dir()
    for path in (tmp_path / "self", tmp_path / "self" / "in"):
        check_out(LabelSettings(images=str(tmp_path / "disk"), out=path), path)
        with pytest.raises(UserError, match="choose another folder"), writing(path, path):
            make_folder(path)


def test_a_kill_leaves_no_half_of_a_folder_that_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "model"
    out.mkdir()
    for name in ("config.json", "model.safetensors"):
        (out / name).touch()

    def removes(folder: Path, **_: Any) -> None:
        next(folder.iterdir()).unlink()
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", removes)
    with pytest.raises(Killed):
        remove_folder(out)
    assert not out.exists()


def test_a_folder_that_is_there_is_not_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run of the same command would refuse it."""
    monkeypatch.setattr(shutil, "rmtree", Mock(side_effect=Killed))
    with publish_folder(tmp_path / "model"):
        pass
    assert (tmp_path / "model").is_dir()


@pytest.mark.parametrize("letter", ["x", "é"])
def test_the_longest_name_of_a_file_system_is_written_and_swept(
    tmp_path: Path, letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(letter.encode())
    name, shorter = letter * (255 // size), letter * (154 // size)
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 64)
    (tmp_path / f".{shorter}.{scratch.host()}.{DEAD}.1234abcd").touch()  # of a version that cut no names
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: DEAD)
        (tmp_path / scratch_name(f".{name}")).mkdir()
    with publish_folder(tmp_path / name):
        pass
    scratch_beside(tmp_path / shorter)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with publish_result(tmp_path / name[1:]) as result, publish(tmp_path / "out" / name, tmp_path / "out") as file:
        result.touch()
        file.touch()


def test_what_a_process_of_another_container_writes_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers that share the network of their machine share its name, and each numbers its processes anew."""
    names = []
    for number in (0, 1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: DEAD)
            if number:
                patch.setattr(os, "readlink", lambda path: "pid:[4026532999]")
            names.append(scratch_name(".model"))
    for name in names[:2]:
        (tmp_path / name).mkdir()
    (tmp_path / names[1] / "weights").touch()
    (tmp_path / names[2]).touch()
    like_it = tmp_path / ".model.v2.1.20261130"
    like_it.touch()
    scratch_beside(tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], like_it.name}
    # One that nothing has changed for long is of a process that has ended, unless it is an empty mark.
    monkeypatch.setattr(scratch, "_SECONDS_UNTOUCHED", -1)
    scratch_beside(tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {names[2], like_it.name}

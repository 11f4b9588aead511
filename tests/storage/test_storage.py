"""A disk that is full at any write: nothing half-written is ever seen, and what is finished stays."""

import errno
import fcntl
import os
import pwd
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage import publish as publishing
from sea_pipeline.storage.cache import remembered
from sea_pipeline.storage.locks import locked
from sea_pipeline.storage.paths import cache_folder, expanded
from sea_pipeline.storage.publish import TEMPORARY, publish, publish_bytes, publish_folder, sweep, writing
from sea_pipeline.storage.scratch import host
from tests.support.contents import content
from tests.support.programs import Begin, labelling
from tests.support.refused import refused
from tests.support.world import Label, draw_but_one, draw_folder


def denied(path: object) -> PermissionError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    with publish(target, tmp_path) as scratch:
        scratch.write_bytes(b"first")
        assert not target.exists()
    assert target.read_bytes() == b"first"
    with pytest.raises(RuntimeError), publish(target, tmp_path) as scratch:
        scratch.write_bytes(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"first"
    assert not list((tmp_path / TEMPORARY).iterdir())


@pytest.mark.parametrize(
    ("code", "said_by"),
    [(errno.EACCES, "system")]
    + [(code, by) for code in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG) for by in ("system", "library")],
)
def test_a_disk_that_cannot_be_written_is_a_clear_line(tmp_path: Path, code: int, said_by: str) -> None:
    """Some libraries tell of it in their text alone."""
    problems = {
        "system": OSError(code, os.strerror(code), tmp_path / "file"),
        "library": RuntimeError(f"Data processing error: I/O error: {os.strerror(code)} (os error {code})"),
    }
    said = (os.strerror(code), "the same command again", "file: cannot be written")
    with refused(*said), publish(tmp_path / "file", tmp_path):
        raise problems[said_by]


@pytest.mark.parametrize("refusing", ["mkdir", "touch", "rename"])
def test_a_cache_that_cannot_be_written_is_a_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    """Its message names the variable, as no option chooses the cache's folder; that of other folders does not."""

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise denied(path)

    monkeypatch.setenv("SEA_PIPELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(*{"rename": (os, "replace")}.get(refusing, (Path, refusing)), refuse)
    with refused(
        f"{tmp_path}/cache/a", "cannot be written: Permission denied; set SEA_PIPELINE_CACHE to a folder that can be "
    ):
        remembered("a/b", lambda path: None, lambda: 1, lambda value, path: path.write_text("1"))
    with refused("out: cannot be written: Permission denied; choose a folder "), writing(tmp_path / "out"):
        refuse(tmp_path / "out")


def test_a_user_without_a_home_folder_is_told_to_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container; other folders can be written all the same, and have their own advice."""
    for name in ("SEA_PIPELINE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", Mock(side_effect=KeyError))
    with refused("no home folder of this user; set it to a folder that can", start="SEA_PIPELINE_CACHE: "):
        cache_folder()
    with refused("Permission denied; choose a folder that can be written"), writing(tmp_path / "out"):
        raise denied(tmp_path / "out")
    assert expanded("~/clip") == Path("~/clip")
    monkeypatch.setenv("SEA_PIPELINE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_a_file_is_locked_on_a_network_drive_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS refuses the lock of a file that is open to be read alone."""
    plain = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        plain(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "x.lock").touch()
    with locked(tmp_path / "x.lock") as has_lock:
        assert has_lock


@pytest.mark.parametrize(
    "problem", [denied("/elsewhere/weights.safetensors"), RuntimeError("Permission denied (os error 13)")]
)
def test_rights_that_lack_elsewhere_are_not_blamed_on_the_output(tmp_path: Path, problem: Exception) -> None:
    """Also where a library tells of them, which cannot read."""
    with pytest.raises(type(problem), match=re.escape(str(problem))), publish(tmp_path / "file", tmp_path):
        raise problem


def test_a_full_disk_is_blamed_on_the_target_of_a_copy(tmp_path: Path) -> None:
    """Python names both files, the source first."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/elsewhere/part", None, str(tmp_path / "out" / "part"))
    said = "out: cannot be written: No space left on device; free some space"
    with refused(said), writing(tmp_path / "out", tmp_path):
        raise full


def test_rights_that_lack_are_seen_however_the_output_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="out/file: cannot be written"), publish(Path("out/file"), Path("out")):
        raise denied(tmp_path / "out" / "file")


def test_a_folder_is_not_blamed_for_what_it_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for beside in ("weights", str(tmp_path / "weights")):
        with pytest.raises(PermissionError), publish_folder(Path("model")):
            raise denied(beside)
    with pytest.raises(UserError) as problem, publish_folder(Path("model")) as scratch:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch.absolute() / "weights"))
    assert str(problem.value).endswith("No space left on device; free some space and run the same command again")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_has_made_or_that_is_in_use_is_a_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "model: cannot be written: Directory not empty; choose another folder"
    with refused(said), publish_folder(tmp_path / "model"):
        (tmp_path / "model" / "of another").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=r"^\.: cannot be written: .* busy; choose another"), publish_folder(Path()):
        pass


def test_of_two_without_a_lock_between_them_the_first_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two machines on one network file system are: the other's file comes just before ours."""
    path = tmp_path / "codec"

    def behind_another(step: Callable[[Path, Path], Any]) -> Callable[[Path, Path], Any]:
        def both(one: Path, other: Path) -> None:
            path.write_bytes(b"the other's")
            step(one, other)

        return both

    for step in ("hardlink_to", "replace"):
        monkeypatch.setattr(Path, step, behind_another(getattr(Path, step)))
    with pytest.raises(FileExistsError):
        publish_bytes(path, b"ours", tmp_path, exclusive=True)
    assert path.read_bytes() == b"the other's"
    assert not list((tmp_path / TEMPORARY).iterdir())


def test_a_file_system_without_links_has_first_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "hardlink_to", Mock(side_effect=PermissionError(errno.EPERM, "not permitted")))
    publish_bytes(tmp_path / "codec", b"first", tmp_path, exclusive=True)
    with pytest.raises(FileExistsError):
        publish_bytes(tmp_path / "codec", b"second", tmp_path, exclusive=True)
    assert (tmp_path / "codec").read_bytes() == b"first"


@pytest.mark.parametrize("clear", [sweep, lambda root: publish_bytes(root / "dead", b"", root)])
def test_a_dead_process_that_its_parent_never_asked_after_is_dead(clear: Any, tmp_path: Path) -> None:
    """What it left goes where all is swept, and when the same file is written again."""
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read()  # its end
        while Path(f"/proc/{child.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        left = [f"{name}.{host()}.{process}.0" for name, process in (("dead", child.pid), ("mine", os.getpid()))]
        (tmp_path / TEMPORARY).mkdir()
        for name in left:
            (tmp_path / TEMPORARY / name).touch()
        clear(tmp_path)
    assert [path.name for path in (tmp_path / TEMPORARY).iterdir()] == left[1:]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_but_one(tmp_path / "photos", 18)


@pytest.mark.slow
@pytest.mark.parametrize("extended", [False, True])
def test_full_at_random_writes(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extended: bool
) -> None:
    """Each run meets a full disk after some files, until one comes through; then once more as the folder grows."""
    whole = tmp_path / "whole"
    label(images=str(photos), out=whole, max_bad=0.5)
    if extended:
        label(images=str(photos), max_bad=0.5)
        draw_folder(photos / "more", 10, seed=1)
        label(images=str(photos), out=whole, max_bad=0.5, extend=True)
    plain, chance, said = publishing.sync, random.Random(0), []

    def sync(path: Path) -> None:
        if path.is_file() and chance.random() < 0.4:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        plain(path)

    monkeypatch.setattr(publishing, "sync", sync)
    for _ in range(60):
        try:
            label(images=str(photos), max_bad=0.5, extend=extended)
            break
        except UserError as error:
            said.append(str(error))
        if (tmp_path / "labels" / "dataset.json").exists():
            assert check_files(Ledger.open(tmp_path / "labels")).problems == []
    assert len(said) > 2
    assert all("No space left on device; free some space and run the same command again" in line for line in said)
    assert content(tmp_path / "labels") == content(whole)
    assert not list((tmp_path / "labels" / ".tmp").iterdir())


def test_full_for_real_at_the_largest_files(
    label: Label, photos: Path, tmp_path: Path, words: Path, program: Begin
) -> None:
    """A file size limit just below each of the larger files of a run."""
    label(images=str(photos), out=tmp_path / "whole", max_bad=0.5)
    sizes = sorted({len(data) for data in content(tmp_path / "whole").values()})
    command = labelling(photos, words, tmp_path / "labels", "--shard-size", 4, "--max-bad", 0.5)
    for limit in (sizes[-1] - 1, sizes[-3] - 1):
        done = program(*command, file_size=limit)
        assert done.wait() == 1
        assert "cannot be written: File too large; raise the file size limit" in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr
        if (tmp_path / "labels" / "dataset.json").exists():
            assert check_files(Ledger.open(tmp_path / "labels")).problems == []
    label(images=str(photos), max_bad=0.5)
    assert content(tmp_path / "labels") == content(tmp_path / "whole")

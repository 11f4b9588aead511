"""A result replaces its like alone: no data, nothing that the command reads, no device; a link stays one."""

import errno
import os
from pathlib import Path

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.results import ResultKind, check_result, publish_result

KIND = ResultKind("--out", b"made by sea-pipeline")
OURS = b"made by sea-pipeline" + b"." * 9999


def written(out: Path, *reads: Path) -> bytes:
    check_result(out, KIND, reads)
    with publish_result(out) as scratch:
        scratch.write_bytes(OURS)
    return out.read_bytes()


@pytest.mark.parametrize("there", [None, b"", OURS, OURS[::-1] + KIND.mark])
def test_an_earlier_result_is_replaced(there: bytes | None, tmp_path: Path) -> None:
    out = tmp_path / "new" / "r"
    if there is not None:
        out.parent.mkdir()
        out.write_bytes(there)
    assert written(out, tmp_path / "gone") == OURS
    assert written(out, out.parent) == OURS, "also in a folder that is read"


def test_nothing_of_a_result_is_kept_by_a_full_disk(tmp_path: Path) -> None:
    said = r"r: cannot be written: No space .* run the same command again$"
    with pytest.raises(UserError, match=said), publish_result(tmp_path / "r"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_other_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, folder = tmp_path / "data.json", tmp_path / "labels"
    data.write_bytes(b"[]")
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "empty.json").touch()
    monkeypatch.chdir(folder / "deep")
    for out, reads, said in (
        (data, [], f"--out {data}: expected a file to write; found one that the command did not write"),
        (data, [data], f"found {data}, which the command reads; name a file elsewhere"),
        (tmp_path / "empty.json", [tmp_path / "empty.json"], "which the command reads"),
        (tmp_path / "link" / "deep" / "x", [folder], f"found a path in {folder}, which the command reads"),
        (Path("x"), [Path("..")], r"found a path in \.\., which the command reads"),
        (folder, [], "found a folder; name a file in it"),
    ):
        with pytest.raises(UserError, match=said):
            check_result(out, KIND, reads)
    data.unlink()
    assert written(data) == OURS, "as its message advises"


def test_a_link_leads_to_the_result(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(Path("shared") / "r")
    for _ in range(2):
        assert written(tmp_path / "link") == (tmp_path / "shared" / "r").read_bytes() == OURS
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="found a device or a pipe; name a file"):
        check_result(tmp_path / "pipe", KIND, [])

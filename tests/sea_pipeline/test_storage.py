import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sea_pipeline.errors import UserError
from sea_pipeline.storage import TEMPORARY, publish, publish_bytes, sweep


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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_cannot_be_written_is_a_clear_line(tmp_path: Path, code: int) -> None:
    with pytest.raises(UserError, match="file: cannot be written") as error, publish(tmp_path / "file", tmp_path):
        raise OSError(code, os.strerror(code), tmp_path / "file")
    assert os.strerror(code) in str(error.value)
    assert "the same command again" in str(error.value)


def test_rights_that_lack_elsewhere_are_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), publish(tmp_path / "file", tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/elsewhere/weights.safetensors")


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """A file size limit is the full disk that an unprivileged test can have."""
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from sea_pipeline.errors import UserError; from sea_pipeline.storage import publish_bytes\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "root = Path(sys.argv[1])\n"
        "try: publish_bytes(root / 'file', b'x' * 2000, root)\n"
        "except UserError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True).stdout
    assert "cannot be written: File too large" in out
    assert not (tmp_path / "file").exists()
    assert not list((tmp_path / TEMPORARY).iterdir())


def test_sweep_takes_what_dead_processes_left_and_nothing_else(tmp_path: Path) -> None:
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys; from pathlib import Path; from sea_pipeline.storage import publish\n"
            "root = Path(sys.argv[1])\n"
            "with publish(root / 'part.parquet', root) as scratch: scratch.write_bytes(b'half'); os._exit(9)",
            tmp_path,
        ],
        check=False,
    )
    assert child.returncode == 9
    with publish(tmp_path / "mine", tmp_path) as scratch:
        scratch.write_bytes(b"")
        assert len(list((tmp_path / TEMPORARY).iterdir())) == 2
        sweep(tmp_path)
        assert list((tmp_path / TEMPORARY).iterdir()) == [scratch]
    publish_bytes(tmp_path / "other", b"x", tmp_path)
    assert (tmp_path / "other").read_bytes() == b"x"

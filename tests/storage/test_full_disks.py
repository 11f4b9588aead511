"""A disk that is full, here or in a store elsewhere: its own line names the one that is."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from matplotlib.figure import Figure

from sea_pipeline import open_labels
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.report.figures import save_figure
from sea_pipeline.storage import retry
from sea_pipeline.storage.paths import cache_folder, place
from sea_pipeline.storage.publish import TEMPORARY, local_copy
from sea_pipeline.storage.remote import RemotePath
from tests.support.contents import stored
from tests.support.refused import refused
from tests.support.world import Label, draw_but_one

pytestmark = pytest.mark.usefixtures("no_long_waits", "empty_memory")


@pytest.mark.parametrize("url", ["memory://x", "s3://bucket/x"])
def test_a_full_disk_of_this_machine_is_not_blamed_on_the_store(
    tmp_path: Path, s3: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it asked for the file again."""
    (tmp_path / "file").write_bytes(bytes(200_000))
    place(f"{url}/file").upload(tmp_path / "file")
    sleep = Mock()
    monkeypatch.setattr(retry, "time", SimpleNamespace(sleep=sleep))  # other threads sleep, too
    with (
        full_disk(100_000),
        refused("cannot be written: File too large; raise the file size limit and run", start=str(cache_folder())),
        local_copy(place(f"{url}/file")),
    ):
        pass
    sleep.assert_not_called()
    assert list((cache_folder() / TEMPORARY).iterdir()) == []
    with local_copy(place(f"{url}/file")) as copy:
        assert copy.stat().st_size == 200_000


def test_a_full_disk_of_this_machine_damages_no_shard(
    label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that cannot be copied here is not done again, nor called damaged."""
    photos = draw_but_one(tmp_path / "photos", 8)
    label(images=str(photos), out="memory://x")
    before, store = stored("memory://x"), open_labels("memory://x", verify=False)
    plain, faults = RemotePath.download, [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

    def download(path: RemotePath, file: Path) -> None:
        if faults:  # for a moment
            raise faults.pop()
        plain(path, file)

    monkeypatch.setattr(RemotePath, "download", download)
    with refused("cannot be written: No space left on device; free some space", start=str(cache_folder())):
        list(store.tables())
    with full_disk(1000):
        with refused("cannot be written: File too large"):
            check_files(Ledger.open(place("memory://x")))
        with refused("cannot be written: File too large"):
            label(images=str(photos), out="memory://x")
    assert stored("memory://x") == before


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Lets no file of this process outgrow `size`, which is the full disk that an unprivileged test can have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", ["pdf", "png", "svg"])
def test_a_figure_on_a_full_disk_is_one_line(tmp_path: Path, suffix: str) -> None:
    """Where matplotlib's own error hides the disk's."""
    path = tmp_path / f"a.{suffix}"
    with full_disk(100), refused("cannot be written: File too large; raise", start=str(path)):
        save_figure(Figure(), path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_full_itself_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    path = place("memory://x/file")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(type(path.fs), "put_file", Mock(side_effect=full))
    with refused("cannot be written: ", "No space left on device", start="memory://x/file"):
        path.upload(tmp_path / "file")

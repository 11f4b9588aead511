"""A disk that is full at any write: nothing half-written is ever seen, and what is finished stays."""

import errno
import os
import random
from pathlib import Path

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage import publish
from tests.support.contents import content
from tests.support.programs import Begin, labelling
from tests.support.world import Label, draw_folder, word_file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    photos = draw_folder(tmp_path / "photos", 18)
    (photos / "003.png").write_bytes(b"bad")
    return photos


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
    plain, chance, said = publish.sync, random.Random(0), []

    def sync(path: Path) -> None:
        if path.is_file() and chance.random() < 0.4:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        plain(path)

    monkeypatch.setattr(publish, "sync", sync)
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


def test_full_for_real_at_the_largest_files(label: Label, photos: Path, tmp_path: Path, program: Begin) -> None:
    """A file size limit just below each of the larger files of a run."""
    label(images=str(photos), out=tmp_path / "whole", max_bad=0.5)
    sizes = sorted({len(data) for data in content(tmp_path / "whole").values()})
    words = word_file(tmp_path / "colours.txt")
    command = labelling(photos, words, tmp_path / "labels", "--shard-size", 4, "--max-bad", 0.5)
    for limit in (sizes[-1] - 1, sizes[-3] - 1):
        done = program(*command, file_size=limit)
        assert done.wait() == 1
        assert "File too large" in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr
        if (tmp_path / "labels" / "dataset.json").exists():
            assert check_files(Ledger.open(tmp_path / "labels")).problems == []
    label(images=str(photos), max_bad=0.5)
    assert content(tmp_path / "labels") == content(tmp_path / "whole")

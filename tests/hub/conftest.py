"""Fixtures of the tests of the hub: the stand-in, and a folder of labels to push."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.hub import push as pushing
from sea_pipeline.hub.picture import draw_picture
from sea_pipeline.storage.publish import publish_bytes
from tests.hub.stand_in import Hub, served
from tests.support.world import draw_folder

NAME = "owner/labels"


_DRAWN: dict[tuple[bytes, bytes], bytes] = {}
"""By the numbers that they show, the pictures of labels."""


@pytest.fixture(autouse=True)
def _a_picture_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is more than half of a push; other numbers give another one."""

    def drawn(ledger: Any, stats: Any, path: Path) -> None:
        shown = stats and (stats.score_bins.tobytes(), stats.mean_similarity.tobytes())
        if shown in _DRAWN:
            publish_bytes(path, _DRAWN[shown], path.parent)
            return
        draw_picture(ledger, stats, path)
        if shown:
            _DRAWN[shown] = path.read_bytes()

    monkeypatch.setattr(pushing, "draw_picture", drawn)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on loopback, where this machine's token is that of `owner`."""
    with served(monkeypatch, tmp_path / "hf") as hub:
        yield hub
        assert hub.unknown == []


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks again at once."""
    clock = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)


@pytest.fixture
def labels(label: Callable[..., StageRun], tmp_path: Path) -> Path:
    """Labels of ten photos in three shards, and one that could not be read."""
    photos = draw_folder(tmp_path / "photos", 11)
    (photos / "003.png").write_bytes(b"bad")
    label(images=str(photos), max_bad=1.0)
    return tmp_path / "labels"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty-one photos in three folders, of which one cannot be read."""
    photos = draw_folder(tmp_path / "photos", 21)
    (photos / "003.png").write_bytes(b"bad")
    return photos

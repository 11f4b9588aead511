"""Fixtures of the tests of the hub: the stand-in, and a folder of labels to push."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sea_pipeline.execution.dispatch import StageRun
from tests.hub.stand_in import Hub, served
from tests.support.world import draw_folder

NAME = "owner/labels"


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

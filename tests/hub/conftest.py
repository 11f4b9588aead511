"""Fixtures of the tests of the hub: the stand-in, folders of labels to push, and a dataset that holds them."""

import shutil
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.hub import push as pushing
from sea_pipeline.hub.picture import draw_picture
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.publish import publish_bytes
from tests.hub.helpers import NAME
from tests.hub.repositories import Repository
from tests.hub.stand_in import Hub, served
from tests.support.joins import whole_list
from tests.support.world import Label, Shelved, draw_but_one, draw_folder

_DRAWN: dict[tuple[bytes, bytes], bytes] = {}
"""By the numbers that they show, the pictures of labels."""


@pytest.fixture(autouse=True)
def _quickly(one_thread: None, no_long_waits: None) -> None:
    """Tensors are tiny, and nobody is waited for."""


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
def labels(shelved: Shelved, tmp_path: Path) -> Path:
    """Labels of ten photos in three shards, and one that could not be read; the photos are beside them."""
    shutil.copytree(shelved(11, max_bad=1.0), tmp_path, dirs_exist_ok=True)
    return tmp_path / "labels"


@pytest.fixture
def extend(label: Label, labels: Path) -> Callable[[int], None]:
    """Adds so many photos to `labels`."""

    def run(count: int) -> None:
        photos = draw_folder(labels.parent / "photos" / "more", count, seed=3).parent
        label(images=str(photos), extend=True, max_bad=1.0)

    return run


@pytest.fixture(scope="session")
def _held() -> dict[str, Repository]:
    """The dataset of `pushed`, pushed once."""
    return {}


@pytest.fixture
def pushed(hub: Hub, labels: Path, _held: dict[str, Repository]) -> str:
    """The hub holds `labels` as `NAME`, at this commit."""
    if not _held:
        pushing.push(labels, NAME)
        _held.update(deepcopy(hub.repositories))
    hub.repositories[NAME] = deepcopy(_held[NAME])
    lfs = [file for tree in _held[NAME].commits.values() for file in tree.values() if file.is_lfs]
    hub.objects |= {file.sha256: file.data for file in lfs}
    hub.received |= {(NAME, file.sha256) for file in lfs}
    return hub.repositories[NAME].refs["main"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty-one photos in three folders, of which one cannot be read."""
    return draw_but_one(tmp_path / "photos", 21)


@pytest.fixture
def label_all(label: Label, photos: Path) -> Label:
    """Labels of all that `photos` holds now, by a list; any setting can be given."""

    def run(out: Path, **settings: Any) -> StageRun:
        images = settings.pop("images", None) or whole_list(photos)
        return label(images=images, image_root=str(photos), out=out, max_bad=1.0, **settings)

    return run


@pytest.fixture
def whole(label_all: Label, tmp_path: Path) -> Path:
    """Labels of `photos`."""
    label_all(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def ids(whole: Path) -> list[str]:
    """The images of `whole`, the bad one among them."""
    return [sample.image_id for sample in Ledger.open(whole).plan]

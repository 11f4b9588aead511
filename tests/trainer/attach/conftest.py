"""Fixtures of attached models; see worlds.py, families.py and existing.py."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_runs import colours
from tests.trainer.attach.existing import ExistingWorld, make_existing
from tests.trainer.attach.families import Tiny
from tests.trainer.attach.worlds import Pictures, draw_pictures
from trainer.attach import Attached, attach


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tensors so small only wait for more."""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    root: Path = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEA_PIPELINE_CACHE", str(root / "cache"))
        return draw_pictures(root)


@pytest.fixture(scope="session")
def world(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> ExistingWorld:
    """Folders of existing models and conversations, to be read only."""
    return make_existing(tmp_path_factory.mktemp("existing"), pictures)


@pytest.fixture
def colour_encoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The encoder of the drawn colours, for the texts of words."""
    with colours(monkeypatch):
        yield


@pytest.fixture
def attached() -> Iterator[Callable[..., Attached]]:
    """Attaches to a model that trains, and detaches behind the test."""
    every: list[Attached] = []

    def make(made: Tiny, **settings: Any) -> Attached:
        made.model.train()
        every.append(attach(made.model, made.processor, **settings))
        return every[-1]

    yield make
    for one in every:
        one.detach()

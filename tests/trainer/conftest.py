"""The tiny training world; see tiny_runs.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_runs import World, colours, make_world


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> World:
    root: Path = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEA_PIPELINE_CACHE", str(root / "cache"))
        return make_world(root)


@pytest.fixture
def tiny(_made: World) -> Iterator[World]:
    """Pictures, captions, labels and a model, to be read only, with the encoder that made the labels in place."""
    with colours():
        yield _made

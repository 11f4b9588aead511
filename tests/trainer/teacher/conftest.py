"""A tiny model with layers to learn from, and the targets that it gives."""

from pathlib import Path

import pytest

from tests.support.run_values import settings
from tests.support.tiny_runs import ROWS, World
from trainer.teacher.run import teach_images


@pytest.fixture
def world(tiny: World, deep: Path) -> World:
    return tiny._replace(model=deep)


@pytest.fixture(scope="module")
def _targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("taught") / "targets"


@pytest.fixture
def targets(world: World, _targets: Path) -> Path:
    """Of the world's images, as float16; taught once, to be read only."""
    if not _targets.exists():
        assert teach_images(settings(world, _targets)).report.images == ROWS - 1  # one sample has no image
    return _targets

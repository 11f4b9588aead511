"""A folder of planted targets; see planted_targets.py."""

import shutil
from pathlib import Path

import pytest

from tests.support.planted_targets import teach


@pytest.fixture(scope="session")
def _taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teach(tmp_path_factory.mktemp("taught") / "targets")


@pytest.fixture
def folder(_taught: Path, tmp_path: Path) -> Path:
    """To be spoiled."""
    return Path(shutil.copytree(_taught, tmp_path / "targets"))

"""A folder of photos that grows."""

import shutil
from pathlib import Path

import pytest

from tests.support.world import draw_folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten of sixteen pictures; `grow` brings the others, whose ids lie between theirs."""
    photos = draw_folder(tmp_path / "photos", 16)
    for number in (1, 4, 7, 8, 12, 15):
        (path,) = photos.rglob(f"{number:03d}.png")
        moved = tmp_path / "later" / path.relative_to(photos)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    return photos


def grow(photos: Path) -> None:
    shutil.copytree(photos.parent / "later", photos, dirs_exist_ok=True)

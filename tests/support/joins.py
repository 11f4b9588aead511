"""Helpers of the tests that merge folders and select from them."""

from collections.abc import Iterable
from pathlib import Path

from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage.paths import place


def listed_file(path: Path, names: Iterable[str]) -> Path:
    """A list of images, as `label` reads it."""
    path.write_text("path\n" + "".join(f"{name}\n" for name in names))
    return path


def whole_list(photos: Path) -> str:
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    return str(listed_file(photos.parent / "all.csv", names))


def problems(folder: object) -> list[str]:
    return check_files(Ledger.open(place(str(folder)))).problems

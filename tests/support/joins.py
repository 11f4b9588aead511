"""Helpers of the tests that merge folders and select from them."""

from pathlib import Path

from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage.paths import place


def whole_list(photos: Path) -> str:
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    listed = photos.parent / "all.csv"
    listed.write_text("path\n" + "".join(f"{name}\n" for name in names))
    return str(listed)


def problems(folder: object) -> list[str]:
    return check_files(Ledger.open(place(str(folder)))).problems

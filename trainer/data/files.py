"""Check without torch that a file of conversations and the folder of its images exist."""

from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.paths import data_folder
from trainer.recipes.recipe import SAMPLES

LABELS = Path("runs") / "labels"
"""Default folder of label folders."""


def conversations_file(data: str) -> Path:
    """Return the file that `data.train` of a recipe, or --data, means."""
    return data_folder("jobs") / "samples.json" if data == SAMPLES else Path(data)


def check_conversations(data: str, image_root: Path | None) -> None:
    """Check that a file of conversations and the folder of its images exist.

    Raises:
        UserError: one of them does not exist.
    """
    check_conversations_file(conversations_file(data))
    if data != SAMPLES:
        check_image_root(image_root or Path(data).parent)


def check_conversations_file(path: Path) -> None:
    """Refuse a path that does not exist or does not end with .json or .jsonl."""
    expected = f"{path}: expected LLaVA's conversations, a .json or .jsonl file"
    if not path.is_file():
        raise UserError(f"{expected}; found none there")
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise UserError(f"{expected}; found {path.suffix or 'no suffix'}; unpack, convert or rename it")


def check_image_root(image_root: Path) -> None:
    """Refuse an image root that is not a folder."""
    if not image_root.is_dir():
        raise UserError(f"image root {image_root}: expected a folder; found none there")

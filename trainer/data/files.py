"""Whether a file of conversations and its images' folder are there; nothing loads torch."""

from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.paths import data_folder
from trainer.recipes.recipe import SAMPLES

LABELS = Path("runs") / "labels"
"""Where labels lie that nobody has named."""


def conversations_file(data: str) -> Path:
    """Gives the file that `data.train` of a recipe, or --data, means."""
    return data_folder("jobs") / "samples.json" if data == SAMPLES else Path(data)


def check_conversations(data: str, image_root: Path | None) -> None:
    """Looks for a file of conversations, and for the folder of its images.

    Raises:
        UserError: one of them is not there.
    """
    check_conversations_file(conversations_file(data))
    if data != SAMPLES:
        check_image_root(image_root or Path(data).parent)


def check_conversations_file(path: Path) -> None:
    """Refuses a file that is not there, or not LLaVA's by its name."""
    if path.suffix.lower() not in (".json", ".jsonl") or not path.is_file():
        raise UserError(f"{path}: expected LLaVA's conversations, a .json or .jsonl file; found none there")


def check_image_root(image_root: Path) -> None:
    """Refuses a folder that is not there."""
    if not image_root.is_dir():
        raise UserError(f"image root {image_root}: expected a folder; found none there")

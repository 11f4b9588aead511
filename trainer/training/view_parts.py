"""Define what all views of runs share: their settings, their file, and how it holds texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sea_pipeline.core.settings import Settings
from trainer.evaluation.token_replacement import NEW_TOKENS

VIEWS = "views.json"
VERSION = 5
"""Increase it with each change of what the file holds, so that older files are computed again."""
IMAGES = 8
MEND = "mend it, or give --images 0, which shows earlier results alone"
"""What to do about a photo that the views cannot read."""


class ViewSettings(Settings):
    """What views are asked for."""

    images: int = IMAGES
    """The first so many held-out images of the run's data; of all its data where none are held out."""
    new_tokens: int = NEW_TOKENS
    """Of a generated text, at most."""
    device: str = "auto"


@dataclass
class Texts:
    """Number texts, each once."""

    places: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        """Return the number of a text."""
        return self.places.setdefault(text, len(self.places))

    def numbers(self, names: Sequence[str] | dict[int, str], ids: Sequence[int]) -> list[int]:
        """Return the numbers of the texts with these ids."""
        return [self.number(names[id_]) for id_ in ids]

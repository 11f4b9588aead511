"""Open a finished run for its views, and hold what the views of all models share: settings, file, texts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Advance
from sea_pipeline.core.settings import Settings
from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.inputs.crops import CropBox
from sea_pipeline.labels.store import LabelStore
from sea_pipeline.storage.hashing import file_sha256, fingerprint_of
from trainer.data.run_rows import Conversations, without_broken
from trainer.evaluation.evaluator import Evaluator, ShownImage
from trainer.evaluation.nearest_by_layer import token_texts
from trainer.evaluation.token_replacement import NEW_TOKENS
from trainer.model.digests import begun_folder, weights_digest
from trainer.model.run_record import RunRecord, read_run

VIEWS = "views.json"
VERSION = 5
"""Increase it with each change of what the file holds, so that older files are computed again."""
IMAGES = 8
MEND = "mend it, or give --images 0, which shows earlier results alone"
"""What to do about a photo that the views cannot read."""

Made = TypeVar("Made")


class ViewSettings(Settings):
    """What views are asked for."""

    images: int = IMAGES
    """The first so many held-out images of the run's data; of all its data where none are held out."""
    new_tokens: int = NEW_TOKENS
    """Of a generated text, at most."""
    device: str = "auto"


class RunViews(ABC):
    """Open the inputs of a run; `compute` makes the views of its first images.

    Attributes:
        images: the images that are shown.
        key: hash of all that decides the views.
    """

    column: ClassVar[str] = "input_ids"
    """The column of rows that holds what is read with the images."""

    def __init__(self, run: Path, settings: ViewSettings) -> None:
        record = read_run(run)
        self.recipe, self.settings, self._began_with = record.recipe, settings, record.began_with
        self.notes: dict[str, str] = {}
        self._texts: dict[str, int] = {}
        self.folder: Any = self._open_folder(run / "model")
        conversations = self._open_rows()
        self.store = self.or_note("labels", lambda: self._open_labels(conversations, record))
        self.conversations = self._readable(conversations)
        held_out = self.conversations.held_out
        self.evaluator = self._make_evaluator(self.conversations.train if held_out is None else held_out)
        self.images = self.evaluator.first_images(settings.images)
        self.start = self._start()
        self.key = fingerprint_of(
            {
                "version": VERSION,
                "run": record.fingerprint,
                "weights": weights_digest(self.folder.path, self.folder.projector),
                "labels": None if self.store is None else file_sha256(self.store.path / "manifest.json"),
                "before": self.start is not None,
                "images": [image_id for _, image_id in self.images],
                "samples": [self.evaluator.data.rows[row][self.column] for row in self.rows()],
                "settings": settings.model_dump(exclude={"device"}),
            }
        )

    @abstractmethod
    def _open_folder(self, path: Path) -> Any:  # noqa: ANN401 - of any model
        """Open the folder of the trained model."""

    @abstractmethod
    def _open_rows(self) -> Conversations:
        """Read the run's data."""

    @abstractmethod
    def _open_labels(self, conversations: Conversations, record: RunRecord) -> LabelStore | None:
        """Find the labels of the run, or return None if none fit; no labels are made."""

    @abstractmethod
    def _make_evaluator(self, rows: Any) -> Evaluator:  # noqa: ANN401 - mapped rows
        """Make the evaluator of rows."""

    @abstractmethod
    def compute(self, advance: Advance) -> dict[str, Any]:
        """Compute the views, see `run_views`.

        `advance` counts each image three times.
        """

    def _readable(self, conversations: Conversations) -> Conversations:
        """Drop the rows that the run has not read."""
        return without_broken(conversations, self.recipe.data, self.store)

    def rows(self) -> list[int]:
        """List the rows of the images that are shown, each once."""
        return list(dict.fromkeys(row for row, _ in self.images))

    def or_note(self, name: str, make: Callable[[], Made]) -> Made | None:
        """Return what a function makes, or note why a part is missing."""
        try:
            return make()
        except UserError as problem:
            self.notes[name] = str(problem)
            return None

    def _start(self) -> Path | None:
        """Return the model folder that the run began with, if it exists and has not changed."""
        path = begun_folder(self.recipe)
        there = (path / "config.json").is_file()
        return path if there and weights_digest(path, self.folder.projector) == self._began_with else None

    def begun_with(self) -> Path:
        """Return the model folder that the run began with.

        Raises:
            UserError: it does not exist any more, or has changed.
        """
        if self.start is None:
            raise UserError(f"the model folder that the run began with is not at {begun_folder(self.recipe)} any more")
        return self.start

    def numbers(self, names: Sequence[str] | dict[int, str], ids: Sequence[int]) -> list[int]:
        """Return the positions in `texts` of the names with these ids."""
        return [self._texts.setdefault(names[id_], len(self._texts)) for id_ in ids]

    def image(self, shown: ShownImage, answer: str, box: CropBox) -> dict[str, Any]:
        """Describe an image, without what the model makes of it."""
        found: dict[str, Any] = {"image": shown.image_id, "file": str(self.conversations.locate(shown.image_id))}
        return found | {"answer": answer, "box": [round(float(edge), 6) for edge in box]}

    def labels(self, words: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return the labels of an image's visual tokens from their words, filled up with -1; nothing without labels."""
        if self.store is None:
            return {}
        known = ([word for word in patch if word >= 0] for patch in words)
        return {"labels": [self.numbers(self.store.words, patch) for patch in known]}

    def nearest(self, ids: Sequence[int], cosines: Sequence[float]) -> dict[str, Any]:
        """Return `before` or `after` of an image from the words, or LLM tokens, nearest to its visual tokens."""
        if self.store is None:
            names: Any = token_texts(self.evaluator.data.processor.tokenizer, sorted(set(ids)))
        else:
            names = self.store.words
        return {"nearest": self.numbers(names, ids), "cosine": [round(cosine, 4) for cosine in cosines]}

    def whole(self, images: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:  # noqa: ANN401 - as `run_views` says
        """Put the views together, without the parts that are None."""
        data = self.recipe.data
        held_out = self.conversations.held_out is not None and data.evaluate != data.train
        made = {"key": self.key, "held_out": held_out, "labelled": self.store is not None}
        made |= {name: value for name, value in parts.items() if value is not None}
        return made | {"images": images, "texts": list(self._texts), "notes": self.notes}


def none_made(_: object) -> StageRun:
    """Refuse to make labels."""
    raise UserError("no labels that fit are below runs/labels any more; run sea-pipeline label, or go where they are")

"""Collect what a run of an existing model makes of its first images, for the report."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Advance
from sea_pipeline.inputs.crops import CropBox
from sea_pipeline.labels.store import LabelStore
from sea_pipeline.storage.hashing import file_sha256, fingerprint_of
from trainer.attach.batches import ChatData
from trainer.attach.folder import open_existing_folder
from trainer.attach.lengths import without_unfit
from trainer.attach.rows import read_texts
from trainer.data.inputs import open_label_source
from trainer.data.run_rows import open_rows, without_broken
from trainer.evaluation.evaluator import ShownImage, evaluating
from trainer.evaluation.existing_evaluator import ExistingEvaluator
from trainer.evaluation.existing_run import load_attached
from trainer.evaluation.nearest_by_layer import check_finite, token_texts
from trainer.measures import metrics
from trainer.model.digests import begun_folder, weights_digest
from trainer.model.run_record import read_run
from trainer.training.view_parts import MEND, VERSION, Texts, ViewSettings

_NOT_THERE = "for models of sea-pipeline init; this run trained one of another family"


class _Shown(NamedTuple):
    """The visual tokens of one view of an image."""

    grid: tuple[int, int]
    box: CropBox
    labels: list[list[int]]
    nearest: list[int]
    cosine: list[float]


class ExistingViews:
    """Open the inputs of a run, and compute the words nearest to its images' visual tokens, before and after.

    Of an image cut into tiles, the view of the whole image is shown.
    """

    def __init__(self, run: Path, settings: ViewSettings) -> None:
        record = read_run(run)
        self.recipe = record.recipe
        self._settings, self._began_with = settings, record.began_with
        self._folder = open_existing_folder(run / "model")
        conversations = open_rows(self.recipe.data, partial(read_texts, chat=self._folder.chat))
        self._notes = dict.fromkeys(("layers", "lens", "generated", "degree"), _NOT_THERE)
        self._store = self._labels(conversations, record.labels)
        conversations = without_broken(conversations, self.recipe.data, self._store)
        if self.recipe.data.bad_rows == "leave_out":  # else the run had none
            conversations = without_unfit(
                conversations, self.recipe.data, self._folder.chat, self._store, max_length=None
            )
        self._conversations = conversations
        held_out = self._conversations.held_out
        rows = self._conversations.train if held_out is None else held_out
        samples = ChatData(rows, self._conversations.locate, self._folder.chat, max_length=None)
        samples.advice = MEND
        self.evaluator = ExistingEvaluator(
            samples,
            self._store,
            vocabulary=self._folder.vocabulary,
            prefix=self.recipe.loss.sea.word_prefix,
            batch_size=1,
        )
        self.images = self.evaluator.first_images(settings.images)
        self._texts = Texts()
        self.key = fingerprint_of(
            {
                "version": VERSION,
                "run": record.fingerprint,
                "weights": weights_digest(self._folder.path, self._folder.projector),
                "labels": None if self._store is None else file_sha256(self._store.path / "manifest.json"),
                "before": self._start() is not None,
                "images": [image_id for _, image_id in self.images],
                "samples": [rows[row]["text"] for row in dict.fromkeys(row for row, _ in self.images)],
                "settings": settings.model_dump(exclude={"device"}),
            }
        )

    def compute(self, advance: Advance) -> dict[str, Any]:
        """Compute the views, see `run_views`.

        `advance` counts each image three times.
        """
        after = self._nearest(self._folder.path, advance)
        images = [self._image(shown, found) for shown, found in zip(self.images, after, strict=True)]
        try:
            for image, found in zip(images, self._before(advance), strict=True):
                image["before"] = self._words(found)
        except UserError as problem:
            self._notes["before"] = str(problem)
        advance(len(images))
        data = self.recipe.data
        held_out = self._conversations.held_out is not None and data.evaluate != data.train
        made = {"key": self.key, "held_out": held_out, "labelled": self._store is not None}
        return made | {"images": images, "texts": list(self._texts.places), "notes": self._notes}

    def _labels(self, conversations: Any, begun_with: str | None) -> LabelStore | None:  # noqa: ANN401 - Conversations
        labels = self.recipe.labels.model_copy(update={"transfer": True})
        recipe, folder = self.recipe.model_copy(update={"labels": labels}), self._folder
        try:
            return open_label_source(recipe, folder, conversations, make=_none_made, begun_with=begun_with)  # type: ignore[arg-type]
        except UserError as problem:
            self._notes["labels"] = str(problem)
            return None

    def _start(self) -> Path | None:
        """Return the model folder that the run began with, if it exists and has not changed."""
        path = begun_folder(self.recipe)
        there = (path / "config.json").is_file()
        return path if there and weights_digest(path, self._folder.projector) == self._began_with else None

    def _before(self, advance: Advance) -> list[_Shown]:
        if (start := self._start()) is None:
            advance(len(self.images))
            raise UserError(f"the model folder that the run began with is not at {begun_folder(self.recipe)} any more")
        return self._nearest(start, advance)

    @torch.no_grad()
    def _nearest(self, path: Path, advance: Advance) -> list[_Shown]:
        model = load_attached(open_existing_folder(path), self._store)
        model.to(torch.device(resolve_device(self._settings.device)))
        found = []
        with evaluating(model):
            embeddings = self.evaluator.embeddings(model)
            table = self.evaluator.word_table(embeddings)
            for row, image_id in self.images:
                (batch,) = cast("list[dict[str, Any]]", list(self.evaluator.batches(model.device, [row])))
                model(**batch)
                names = [name for name, *_ in batch["images"]]
                tiles = model.tiles(names)[names.index(image_id)]
                tile, visual = max(tiles, key=lambda one: area(one[0].box))
                near = metrics.nearest(visual, embeddings if table is None else table, measure="cosine")
                check_finite(near.values, "views")
                labels = model.labels_on(image_id, tile)
                words = (
                    [[word for word in patch if word >= 0] for patch in labels.tolist()] if table is not None else []
                )
                found.append(_Shown(tile.grid, tile.box, words, near.indices.tolist(), near.values.tolist()))
                advance(1)
        return found

    def _image(self, shown: ShownImage, found: _Shown) -> dict[str, Any]:
        row = self.evaluator.data.rows[shown.row]
        said = row["answer"] or "\n".join(row["text"][start:end] for start, end in row["spans"])
        image: dict[str, Any] = {"image": shown.image_id, "file": str(self._conversations.locate(shown.image_id))}
        image |= {"answer": said.strip(), "box": [round(float(edge), 6) for edge in found.box]}
        image["grid"] = list(found.grid)
        if self._store is not None:
            image["labels"] = [self._texts.numbers(self._store.words, words) for words in found.labels]
        return image | {"after": self._words(found)}

    def _words(self, found: _Shown) -> dict[str, Any]:
        if self._store is None:
            names: Any = token_texts(self.evaluator.data.processor.tokenizer, sorted(set(found.nearest)))
        else:
            names = self._store.words
        nearest = self._texts.numbers(names, found.nearest)
        return {"nearest": nearest, "cosine": [round(cosine, 4) for cosine in found.cosine]}


def area(box: CropBox) -> float:
    """Compute a box's share of the image, rounded to tenths.

    So a view of the whole image ties with its tiles as one grid, though pixels that make no patch take a little more
    from it. `max` takes the first, which is the whole: its cells are even.
    """
    return round((box[2] - box[0]) * (box[3] - box[1]), 1)


def _none_made(_: object) -> Any:  # noqa: ANN401 - never returns
    raise UserError("no labels that fit are below runs/labels any more; run sea-pipeline label, or go where they are")

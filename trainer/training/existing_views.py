"""Collect what a run of an existing model makes of its first images, for the report."""

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.progress import Advance
from sea_pipeline.inputs.crops import CropBox
from sea_pipeline.labels.store import LabelStore
from trainer.attach.batches import ChatData
from trainer.attach.folder import ExistingFolder, open_existing_folder, open_existing_labels, open_existing_rows
from trainer.attach.lengths import without_unfit
from trainer.data.run_rows import Conversations
from trainer.evaluation.evaluator import ShownImage, evaluating
from trainer.evaluation.existing_evaluator import ExistingEvaluator
from trainer.evaluation.existing_run import load_attached
from trainer.measures import metrics
from trainer.measures.metrics import check_finite
from trainer.model.run_record import RunRecord
from trainer.training.view_parts import MEND, RunViews, none_made

_NOT_THERE = "for models of sea-pipeline init; this run trained one of another family"


class _Shown(NamedTuple):
    """The visual tokens of one view of an image."""

    grid: tuple[int, int]
    box: CropBox
    labels: list[list[int]]
    nearest: list[int]
    cosine: list[float]


class ExistingViews(RunViews):
    """Compute the words nearest to the visual tokens of a run's images, before and after.

    Of an image cut into tiles, the view of the whole image is shown.
    """

    column = "text"
    folder: ExistingFolder

    def _open_folder(self, path: Path) -> ExistingFolder:
        return open_existing_folder(path)

    def _open_rows(self) -> Conversations:
        return open_existing_rows(self.folder, self.recipe.data)

    def _open_labels(self, conversations: Conversations, record: RunRecord) -> LabelStore | None:
        return open_existing_labels(self.recipe, self.folder, conversations, none_made, record.labels)

    def _readable(self, conversations: Conversations) -> Conversations:
        found = super()._readable(conversations)
        if self.recipe.data.bad_rows != "leave_out":  # the run had none
            return found
        return without_unfit(found, self.recipe.data, self.folder.chat, self.store, max_length=None)

    def _make_evaluator(self, rows: Any) -> ExistingEvaluator:  # noqa: ANN401 - mapped rows
        samples = ChatData(rows, self.conversations.locate, self.folder.chat, max_length=None, advice=MEND)
        prefix = self.recipe.loss.sea.word_prefix
        return ExistingEvaluator(samples, self.store, vocabulary=self.folder.vocabulary, prefix=prefix, batch_size=1)

    def compute(self, advance: Advance) -> dict[str, Any]:
        """Compute the views, see `run_views`."""
        after = self._nearest(self.folder.path, advance)
        images = [self._image(shown, found) for shown, found in zip(self.images, after, strict=True)]
        if self.start is None:
            advance(len(images))
        before = self.or_note("before", lambda: self._nearest(self.begun_with(), advance))
        for image, found in zip(images, before or (), strict=bool(before)):
            image["before"] = self.nearest(found.nearest, found.cosine)
        advance(len(images))
        self.notes |= dict.fromkeys(("layers", "lens", "generated", "degree"), _NOT_THERE)
        return self.whole(images)

    @torch.no_grad()
    def _nearest(self, path: Path, advance: Advance) -> list[_Shown]:
        model = load_attached(open_existing_folder(path), self.store)
        model.to(torch.device(resolve_device(self.settings.device)))
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
                words = model.labels_on(image_id, tile).tolist()
                found.append(_Shown(tile.grid, tile.box, words, near.indices.tolist(), near.values.tolist()))
                advance(1)
        return found

    def _image(self, shown: ShownImage, found: _Shown) -> dict[str, Any]:
        row = self.evaluator.data.rows[shown.row]
        said = row["answer"] or "\n".join(row["text"][start:end] for start, end in row["spans"])
        image = self.image(shown, said.strip(), found.box) | {"grid": list(found.grid)} | self.labels(found.labels)
        return image | {"after": self.nearest(found.nearest, found.cosine)}


def area(box: CropBox) -> float:
    """Compute a box's share of the image, rounded to tenths.

    So a view of the whole image ties with its tiles as one grid, though pixels that make no patch take a little more
    from it. `max` takes the first, which is the whole: its cells are even.
    """
    return round((box[2] - box[0]) * (box[3] - box[1]), 1)

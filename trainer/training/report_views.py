"""Compute the words nearest to a run's visual tokens for its report, kept as `views.json` in its folder.

Shapes: I images of m visual tokens, l decoder layers, n labels a patch.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sea_pipeline.core.devices import exact_float32, resolve_device
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Advance, Reporter
from sea_pipeline.labels.store import LabelStore
from sea_pipeline.report.runs import read_views
from sea_pipeline.storage.hashing import fingerprint_of
from sea_pipeline.storage.publish import publish_bytes
from trainer.data.dataset import TrainingData
from trainer.data.inputs import labels_for, open_label_source
from trainer.data.run_rows import Conversations, open_conversations
from trainer.evaluation.contextual_lens import build_index
from trainer.evaluation.contextual_shares import captioned_photos, look_through
from trainer.evaluation.evaluator import Evaluator, ShownImage, evaluating
from trainer.evaluation.nearest_by_layer import look_at_layers
from trainer.evaluation.token_replacement import TrainedTexts, answer_text, replace_and_describe
from trainer.losses.supervision import degrees
from trainer.measures import metrics
from trainer.measures.metrics import check_finite
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.load import ModelFolder, load_model, open_model_folder
from trainer.model.run_record import RunRecord, read_run
from trainer.model.terms import basic_term
from trainer.recipes.recipe import Basic, ExistingModel, Loss, Recipe, Sea
from trainer.training.existing_views import ExistingViews
from trainer.training.view_parts import MEND, RunViews, none_made
from trainer.training.view_parts import VIEWS as VIEWS
from trainer.training.view_parts import ViewSettings as ViewSettings

LENS_TOKENS = 4000
"""Number of words of the training captions in the contextual lens, a fifth of those of `evaluate`."""


def run_views(run: Path, settings: ViewSettings | None = None, *, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Load the views of a finished run from `views.json`, or compute and store them if the file does not fit.

    The file holds `key` (the hash of all that decides it), `held_out`, `grid` [rows, columns], `labelled`, `texts`,
    `summary` (a list of `nearest_by_layer.Layer`), `lens` (a list of `contextual_shares.LensLayer` over the words that
    are trained), `replace` (a `token_replacement.Replace`), `notes` (why a part is missing, by its name) and `images`.

    A run of an existing model has no `grid`, but each image its own, and of the parts `before` and `after` alone.

    An image has `image`, `file`, `answer`, `box` (the part that the tower sees, 0..1), `labels` (m lists), `before` and
    `after`, `layers` (l + 1 lists of m), `describing` (l + 1 strings of m characters 0 and 1, for what `meaningful`
    counts), `degree` (m values a_i of Eq. 5 of BASIC) and `generated` (a `token_replacement.Descriptions`). `before`
    and `after` have `nearest` and `cosine`, m values each: the nearest word of the list to a visual token by cosine, or
    without labels the nearest LLM token.

    Words and tokens are positions in `texts`. A part that could not be computed is absent. The file also has `sha256`,
    the hash of all else in it.

    Raises:
        UserError: the run is not finished, or its inputs do not exist any more.
    """
    settings = settings or ViewSettings()
    existing = isinstance(read_run(run).recipe.model, ExistingModel)
    views: RunViews = ExistingViews(run, settings) if existing else _Views(run, settings)
    with suppress(OSError, ValueError, RecursionError):
        kept = read_views(run / VIEWS)
        if kept.get("key") == views.key:
            return kept
    bar = reporter.progress(f"looking at {run.name}", 3 * len(views.images))
    with bar as advance, exact_float32():  # the views are kept
        made = views.compute(advance)
    written = made | {"sha256": fingerprint_of(made)}
    text = json.dumps(written, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    with suppress(UserError):  # the run may be read-only; the next call computes them again
        publish_bytes(run / VIEWS, text.encode(), run)
    return made


class _Views(RunViews):
    """Compute what the images of a run show."""

    folder: ModelFolder

    def _open_folder(self, path: Path) -> ModelFolder:
        return open_model_folder(path)

    def _open_rows(self) -> Conversations:
        return open_conversations(self.recipe.data, self.folder)

    def _open_labels(self, conversations: Conversations, record: RunRecord) -> LabelStore | None:
        return open_label_source(self.recipe, self.folder, conversations, make=none_made, begun_with=record.labels)

    def _make_evaluator(self, rows: Any) -> Evaluator:  # noqa: ANN401 - mapped rows
        recipe, folder, store, sea = self.recipe, self.folder, self.store, self.recipe.loss.sea
        return Evaluator(
            TrainingData(rows, self.conversations.locate, folder, advice=MEND),
            labels_for(store, folder, sea, transfer=recipe.labels.transfer) if store is not None else None,
            store,
            vocabulary=folder.vocabulary,
            prefix=sea.word_prefix,
            batch_size=4,
            device=resolve_device(self.settings.device),
        )

    def compute(self, advance: Advance) -> dict[str, Any]:
        """Compute the views, see `run_views`."""
        device = torch.device(resolve_device(self.settings.device))
        images = [self._image(shown) for shown in self.images]
        self._add(images, "before", self.or_note("before", lambda: self._before(device)))
        model = load_model(self.folder, Recipe(model=self.folder.path))
        model.to(device)  # type: ignore[arg-type]
        self._add(images, "after", self._nearest(model))
        advance(len(images))
        parts: dict[str, Any] = {"grid": list(self.folder.grid)}
        parts["summary"] = self.or_note("layers", lambda: self._layers(model, images))
        advance(len(images))
        parts["lens"] = self.or_note("lens", lambda: self._lens(model))
        parts["replace"] = self.or_note("generated", lambda: self._generated(model, images))
        # Last, because the attention tap changes the LLM's attention implementation.
        self._add(images, "degree", self.or_note("degree", lambda: self._degrees(model)))
        advance(len(images))
        return self.whole(images, **parts)

    def _add(self, images: list[dict[str, Any]], name: str, found: list[Any] | None) -> None:
        for image, one in zip(images, found or (), strict=bool(found)):
            image[name] = one

    def _image(self, shown: ShownImage) -> dict[str, Any]:
        _, box = self.evaluator.data.image(shown.image_id, self.evaluator.data.rows[shown.row]["id"])
        words = self.evaluator.words([shown])[0].tolist() if self.store is not None else []
        return self.image(shown, answer_text(self.evaluator, shown.row), box) | self.labels(words)

    def _before(self, device: torch.device) -> list[Any]:
        path = self.begun_with()
        alone = Loss(lm=0, sea=Sea(weight=1))  # so that the LLM's layers are not loaded
        model = load_model(open_model_folder(path), Recipe(model=path, loss=alone))
        model.to(device)  # type: ignore[arg-type]
        return self._nearest(model)

    def _nearest(self, model: AlignedLlava) -> list[Any]:
        """Compute `before` or `after` of each image."""
        evaluator = self.evaluator
        with evaluating(model):
            embeddings = evaluator.embeddings(model)
            table = evaluator.word_table(embeddings)
            queries = torch.cat(
                [
                    visual_tokens(model, batch)[evaluator.places(batch, self.images)]
                    for batch in evaluator.batches(model.device, self.rows())
                ]
            )
            found = metrics.nearest(queries.flatten(0, 1), embeddings if table is None else table, measure="cosine")
        check_finite(found.values, "views")
        ids, cosines = (each.cpu().view(queries.shape[:2]).tolist() for each in found)
        return [self.nearest(row, values) for row, values in zip(ids, cosines, strict=True)]

    def _layers(self, model: AlignedLlava, images: list[dict[str, Any]]) -> list[Any]:
        found = look_at_layers(self.evaluator, model, len(images))
        for position, image in enumerate(images):
            image["layers"] = [self.numbers(found.texts, row) for row in found.tokens[:, position].tolist()]
        if self.store is not None:
            words = self.evaluator.words(self.images)
            flags = [self.evaluator.describing(layer, words).int().tolist() for layer in found.tokens.long()]
            for image, rows in zip(images, zip(*flags, strict=True), strict=True):
                if image["image"] in self.store:
                    image["describing"] = ["".join(map(str, row)) for row in rows]
        return found.summary

    def _lens(self, model: AlignedLlava) -> list[Any]:
        processor = self.evaluator.data.processor
        texts = TrainedTexts(processor, self.conversations.train)
        index = build_index(model, processor.tokenizer, texts, tokens=LENS_TOKENS)
        photos = captioned_photos(self.evaluator, len(self.images))
        return list(look_through(self.evaluator, model, index, photos).summary)

    def _generated(self, model: AlignedLlava, images: list[dict[str, Any]]) -> dict[str, Any]:
        found = replace_and_describe(self.evaluator, model, len(images), self.settings.new_tokens)
        self._add(images, "generated", found.described)
        return dict(found.summary)

    def _degrees(self, model: AlignedLlava) -> list[list[float]]:
        basic = self.recipe.loss.basic
        looking = Basic(degree="auto", layers=basic.layers, text=basic.text)
        recipe = self.recipe.model_copy(update={"teacher": None, "loss": Loss(basic=looking)})
        term = basic_term(model, self.folder, recipe, [])
        found: list[list[float]] = []
        with evaluating(model):
            for batch in self.evaluator.batches(model.device, self.rows()):
                columns = batch["input_ids"] == model.config.image_token_id
                with term.watching(dict(batch), columns, model.get_input_embeddings()) as recorder:
                    model(**batch)
                attention = recorder.attention.view(len(batch["pixel_values"]), -1)
                check_finite(attention, "views", "the LLM's attention")
                chosen = degrees(attention)[self.evaluator.places(batch, self.images)]
                found += [[round(share, 6) for share in row] for row in chosen.tolist()]
        return found


def visual_tokens(model: AlignedLlava, batch: Any) -> torch.Tensor:  # noqa: ANN401 - a Batch with `pixel_values`
    """Compute V, float32 (images, m, d), without the LLM."""
    return model.projected(model.tower_output(batch["pixel_values"])).float()

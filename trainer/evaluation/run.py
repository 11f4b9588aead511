"""Compute the metrics of a model folder on data (`sea-pipeline evaluate` as a function)."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.core.renamed import taking_callbacks
from sea_pipeline.inputs.captions import content_words
from sea_pipeline.inputs.pixels import BadImageError, read_image
from sea_pipeline.labels.store import open_labels
from sea_pipeline.report.figures import check_figure
from sea_pipeline.storage.results import publish_result
from trainer.data.conversations import read_conversations, split_rows
from trainer.data.dataset import TrainingData
from trainer.data.inputs import check_measured_labels, labels_for
from trainer.data.run_rows import below, open_conversations, place_of
from trainer.evaluation.checks import check_evaluate
from trainer.evaluation.contextual_lens import TOKENS, build_index, no_words, size_of
from trainer.evaluation.contextual_shares import captioned_photos, look_through
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.existing_run import evaluate_existing
from trainer.evaluation.figures import save_figures
from trainer.evaluation.measured_rows import MEND, readable, say_what_is_cut, say_what_is_left_out
from trainer.evaluation.nearest_by_layer import LayerTokens, look_at_layers
from trainer.evaluation.own_run import OwnRun, own_run
from trainer.evaluation.questions import Asker, ask, open_questions
from trainer.evaluation.settings import EvaluateSettings as EvaluateSettings
from trainer.evaluation.token_replacement import (
    IMAGES,
    ReplacementResult,
    TrainedTexts,
    prompted,
    replace_and_describe,
    trained_text,
)
from trainer.losses.supervision import decoder_layers
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.existing_folder import is_existing
from trainer.model.load import ModelFolder, load_model, open_model_folder
from trainer.recipes.recipe import Data, LabelSource, Recipe


@taking_callbacks("progress")
def evaluate_model(settings: EvaluateSettings, *, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Compute the metrics of `Evaluator` over all samples, and of `questions.Asker` if there are questions.

    With `layers` the result has `layers`, a list of `nearest_by_layer.Layer`. With `replace` it has `replace`: the
    numbers of `token_replacement.Replace`, and `texts`, a list of `token_replacement.Descriptions`, each with its
    `image` and `sample`. With `lens` it has `lens`: `data`, its file; `index`, a `contextual_lens.Size`; `photos`,
    their number; `layers`, a list of `contextual_shares.LensLayer`.

    The file `out` holds `model`, `data`, `layers`, `lens` and `replace` without the texts, and `images`, a list of
    objects with `image`, `sample`, `grid` [rows, columns], `tokens` (l + 1 layers of m texts, row-major; layer 0 is the
    projector's output) and `generated` (`Descriptions`). The last two exist if they were asked for and the image is
    among the first ones.

    Raises:
        UserError: an input does not fit, or `out` cannot be written.
    """
    own = own_run(settings.model, reporter)
    template = settings.template or own.template
    settings = settings.model_copy(update={"template": template})
    captions = check_evaluate(settings)
    if settings.save_figures is not None:
        check_figure(settings.save_figures / "figure.pdf")
    device = resolve_device(settings.device)
    data = Data(
        train=settings.data,
        image_root=settings.image_root,
        template=template,
        max_length=own.max_length,
        bad_rows=settings.bad_rows,
    )
    if is_existing(settings.model):
        return evaluate_existing(settings, data, device, partial(_picture, settings), own.word_prefix, reporter)
    recipe = Recipe(model=settings.model, data=data, labels=LabelSource(transfer=settings.transfer))
    folder = open_model_folder(settings.model)
    evaluator, rows = _evaluator(settings, recipe, folder, own, reporter)
    model = load_model(folder, recipe)
    model.to(torch.device(device))  # type: ignore[arg-type]
    asking = _asking(settings, folder, model, reporter)
    captions_read = _check_analyses(settings, evaluator, model, captions)
    with reporter.progress("evaluating", rows) as advance:
        found: dict[str, Any] = dict(evaluator(model, advance))
    found |= asking()
    found |= _analyses(settings, evaluator, model, captions_read, reporter)
    return found


def _evaluator(
    settings: EvaluateSettings, recipe: Recipe, folder: ModelFolder, own: OwnRun, reporter: Reporter
) -> tuple[Evaluator, int]:
    """Open the rows and the labels, with what measures them, and count the rows."""
    device, data = resolve_device(settings.device), recipe.data
    store = open_labels(settings.labels, reporter=reporter) if settings.labels else None
    conversations = open_conversations(data, folder, run=own.record, reporter=reporter)
    conversations = readable(conversations, data, store, reporter)
    say_what_is_left_out(conversations, reporter)
    say_what_is_cut(conversations, own, reporter)
    if store is not None:
        check_measured_labels(store, conversations, reporter)
    evaluator = Evaluator(
        TrainingData(conversations.train, conversations.locate, folder, advice=MEND),
        labels_for(store, folder, recipe.loss.sea, transfer=settings.transfer, reporter=reporter) if store else None,
        store,
        vocabulary=folder.vocabulary,
        prefix=own.word_prefix,
        batch_size=settings.batch_size,
        device=device,
    )
    evaluator.reporter = reporter
    if store is not None and conversations.image_ids:
        evaluator.load_words()
    return evaluator, len(conversations.train)


class _Captions(NamedTuple):
    """The sentences that the lens is made from."""

    file: Path
    rows: Any
    """See `read_conversations`."""


def _check_analyses(
    settings: EvaluateSettings, evaluator: Evaluator, model: AlignedLlava, captions: Data | None
) -> _Captions | None:
    """Find before the evaluation what would stop an analysis after it, and read the lens's sentences.

    Raises:
        UserError: the data, the LLM, the chat template or the sentences do not fit an analysis that was asked for.
    """
    if settings.layers:
        decoder_layers(model.llm, "--layers")
    if settings.layers or settings.replace:
        first = evaluator.first_images(1)[0]
    if settings.replace:
        photo, _ = evaluator.data.image(first.image_id, evaluator.data.rows[first.row]["id"])
        prompted(evaluator.data.processor, [photo])
    if captions is None:
        return None
    decoder_layers(model.llm, "--lens")
    file, *_ = place_of(captions.train, None)
    processor = evaluator.data.processor
    rows, columns = evaluator.data.grid
    read = read_conversations(
        file,
        processor.tokenizer,
        template=captions.template,
        image_tokens=rows * columns,
        max_length=captions.max_length,
    ).rows
    if captions.held_out:
        read, _ = split_rows(read, captions.held_out if captions.held_out < 1 else int(captions.held_out), seed=0)
    if not any(content_words(trained_text(processor, row)) for row in read):
        raise no_words(len(read))
    captioned_photos(evaluator, 1)
    return _Captions(file, read)


def _through_lens(
    settings: EvaluateSettings,
    captions: _Captions,
    evaluator: Evaluator,
    model: AlignedLlava,
    reporter: Reporter,
) -> dict[str, Any]:
    """Compute what the lens shows.

    Its captions need no photos.
    """
    processor = evaluator.data.processor
    texts = TrainedTexts(processor, captions.rows)
    with reporter.progress("reading captions", TOKENS) as advance:
        index = build_index(model, processor.tokenizer, texts, advance=advance)
    photos = captioned_photos(evaluator, settings.limit_images)
    with reporter.progress("lens", len(photos)) as advance:
        found = look_through(evaluator, model, index, photos, advance)
    return {"data": str(captions.file), "index": size_of(index), "photos": len(photos), "layers": found.summary}


def _asking(
    settings: EvaluateSettings, folder: ModelFolder, model: AlignedLlava, reporter: Reporter
) -> Callable[[], dict[str, float]]:
    """Return the function that scores the model's answers to the questions, if there are any."""
    if settings.questions is None:
        return dict
    questions, picture = open_questions(settings.questions, reporter), partial(_picture, settings)
    asker = Asker(model, folder, picture, template=settings.template or "own", batch_size=settings.batch_size)
    return partial(ask, asker, questions, model, reporter)


def _picture(settings: EvaluateSettings, image: str) -> Image.Image:
    """Read the photo of a question."""
    assert settings.questions is not None
    root = settings.question_root or settings.image_root or settings.questions.parent
    try:
        return read_image(below(root, image)).image
    except (BadImageError, ValueError) as error:
        raise UserError(
            f"{settings.questions}: expected {image!r} below {root}; "
            f"{error.message if isinstance(error, BadImageError) else one_line(error)}; mend it, or name the folder of "
            "the photos with --question-root"
        ) from error


def _analyses(
    settings: EvaluateSettings,
    evaluator: Evaluator,
    model: AlignedLlava,
    captions: _Captions | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Run the analyses `layers`, `lens` and `replace`, and write the file `out`."""
    layers: LayerTokens | None = None
    replaced: ReplacementResult | None = None
    found: dict[str, Any] = {}
    if settings.layers:
        images = evaluator.first_images(settings.limit_images)
        with reporter.progress("layers", len(images)) as advance:
            layers = look_at_layers(evaluator, model, settings.limit_images, advance)
        found["layers"] = layers.summary
    if captions is not None:
        found["lens"] = _through_lens(settings, captions, evaluator, model, reporter)
    if settings.save_figures is not None:
        found["figures"] = [
            str(path) for path in save_figures(evaluator, model, layers, settings.save_figures, settings.limit_images)
        ]
    if settings.replace:
        limit = settings.limit_images or IMAGES
        with reporter.progress("generating", len(evaluator.first_images(limit))) as advance:
            replaced = replace_and_describe(evaluator, model, limit, settings.new_tokens, advance)
        found["replace"] = dict(replaced.summary)
    if settings.out is not None:
        content = {"model": str(settings.model), "data": settings.data, **found}
        content["images"] = _by_image(evaluator, layers, replaced)
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)
        with publish_result(settings.out) as scratch:
            scratch.write_text(f"{text}\n", "utf-8")
    if replaced is not None:
        found["replace"]["texts"] = [
            {"image": image_id, "sample": evaluator.data.rows[row]["id"], **told}
            for (row, image_id), told in zip(replaced.images, replaced.described, strict=True)
        ]
    return found


def _by_image(
    evaluator: Evaluator, layers: LayerTokens | None, replaced: ReplacementResult | None
) -> list[dict[str, Any]]:
    """List the images of the file.

    Both analyses begin at the first image, so the shorter list is the beginning of the longer one.
    """
    listed = max((found.images for found in (layers, replaced) if found is not None), key=len)
    images = []
    for position, (row, image_id) in enumerate(listed):
        entry: dict[str, Any] = {"image": image_id, "sample": evaluator.data.rows[row]["id"]}
        entry["grid"] = list(evaluator.data.grid)
        if layers is not None and position < len(layers.images):
            entry["tokens"] = layers.by_layer(position)
        if replaced is not None and position < len(replaced.images):
            entry["generated"] = replaced.described[position]
        images.append(entry)
    return images

"""Compute the metrics of an existing model's folder on data, see `run.evaluate_model`."""

from collections.abc import Callable
from typing import Any

from PIL import Image

from sea_pipeline.core.progress import Reporter
from sea_pipeline.label_cache import label_cache
from sea_pipeline.labels.store import LabelStore, open_labels
from trainer.attach.attached import Attached
from trainer.attach.batches import ChatData
from trainer.attach.folder import ExistingFolder, load_existing, open_existing_folder, open_existing_rows
from trainer.attach.lengths import without_unfit
from trainer.attach.run_model import AttachedModel
from trainer.data.inputs import check_measured_labels
from trainer.evaluation.existing_evaluator import ExistingEvaluator
from trainer.evaluation.existing_questions import ExistingAsker
from trainer.evaluation.measured_rows import MEND, readable, say_what_is_left_out
from trainer.evaluation.questions import ask, open_questions
from trainer.evaluation.settings import EvaluateSettings
from trainer.recipes.recipe import Data, ExistingModel, Loss, Recipe
from trainer.words import Prefix


def evaluate_existing(
    settings: EvaluateSettings,
    data: Data,
    device: str,
    picture: Callable[[str], Image.Image],
    prefix: Prefix,
    reporter: Reporter,
) -> dict[str, Any]:
    """Compute the metrics of `ExistingEvaluator`, and of `ExistingAsker` if there are questions.

    Args:
        settings: what is asked for.
        data: the conversations.
        device: of the model.
        picture: reads the photo of a question.
        prefix: how words are spelled, see `Sea.word_prefix`.
        reporter: receives progress.

    Raises:
        UserError: an input does not fit.
    """
    folder = open_existing_folder(settings.model)
    store = open_labels(settings.labels, reporter=reporter) if settings.labels else None
    conversations = readable(open_existing_rows(folder, data, reporter), data, store, reporter)
    conversations = without_unfit(conversations, data, folder.chat, store, max_length=None, reporter=reporter)
    say_what_is_left_out(conversations, reporter)
    if store is not None:
        check_measured_labels(store, conversations, reporter)
    model = load_attached(folder, store).to(device)
    samples = ChatData(conversations.train, conversations.locate, folder.chat, max_length=None, advice=MEND)
    evaluator = ExistingEvaluator(
        samples,
        store,
        vocabulary=folder.vocabulary,
        prefix=prefix,
        batch_size=settings.batch_size,
        device=device,
    )
    evaluator.reporter = reporter
    if store is not None:
        model.attached.cache = label_cache(store, reporter=reporter)
        evaluator.load_encoder(reporter)
    asker = ExistingAsker(model, folder, picture, batch_size=settings.batch_size)
    questions = open_questions(settings.questions, reporter) if settings.questions is not None else []
    with reporter.progress("evaluating", len(conversations.train)) as advance:
        found: dict[str, Any] = dict(evaluator(model, advance))
    return found | (ask(asker, questions, model, reporter) if questions else {})


def load_attached(folder: ExistingFolder, store: LabelStore | None) -> AttachedModel:
    """Load a model to be measured, in float32, with labels and without terms.

    Raises:
        UserError: see `load_existing`; or the tokenizer has no tokens for a word of the labels.
    """
    vlm = load_existing(folder, Recipe(model=ExistingModel(attach=folder.path)))
    return AttachedModel(vlm.eval(), Attached(vlm, folder.processor, store, Loss(), 0)).eval()

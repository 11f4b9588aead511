"""Compute the metrics of an existing model's folder on data, see `run.evaluate_model`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image

from sea_pipeline.core.progress import Reporter
from sea_pipeline.labels.store import LabelStore, open_labels
from trainer.attach.attached import Attached
from trainer.attach.batches import ChatData
from trainer.attach.folder import ExistingFolder, load_existing, open_existing_folder
from trainer.attach.lengths import without_unfit
from trainer.attach.rows import read_texts
from trainer.attach.run_model import AttachedModel
from trainer.data.inputs import check_measured_labels
from trainer.data.run_rows import open_rows, without_unreadable
from trainer.evaluation.evaluator import evaluating
from trainer.evaluation.existing_evaluator import ExistingEvaluator
from trainer.evaluation.existing_questions import ExistingAsker
from trainer.evaluation.questions import read_questions
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
    store = open_labels(settings.labels) if settings.labels else None
    conversations = without_unreadable(open_rows(data, partial(read_texts, chat=folder.chat)), data, store)
    if store is not None:
        check_measured_labels(store, conversations, reporter)
    conversations = without_unfit(conversations, data, folder.chat, store, max_length=None, reporter=reporter)
    model = load_attached(folder, store).to(device)
    evaluator = ExistingEvaluator(
        ChatData(conversations.train, conversations.locate, folder.chat, max_length=None),
        store,
        vocabulary=folder.vocabulary,
        prefix=prefix,
        batch_size=settings.batch_size,
        device=device,
    )
    evaluator.reporter = reporter
    with reporter.progress("evaluating", len(conversations.train)) as advance:
        found: dict[str, Any] = dict(evaluator(model, advance))
    if settings.questions is not None:
        questions = read_questions(settings.questions)
        asker = ExistingAsker(model, folder, picture, batch_size=settings.batch_size)
        with evaluating(model), reporter.progress("questions", 2 * len(questions.asked)) as advance:
            found |= asker(questions.asked, advance)
    return found


def load_attached(folder: ExistingFolder, store: LabelStore | None) -> AttachedModel:
    """Load a model to be measured, in float32, with labels and without terms.

    Raises:
        UserError: see `load_existing`; or the tokenizer has no tokens for a word of the labels.
    """
    vlm = load_existing(folder, Recipe(model=ExistingModel(attach=folder.path)))
    return AttachedModel(vlm.eval(), Attached(vlm, folder.processor, store, Loss(), 0)).eval()

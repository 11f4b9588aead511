"""Open and build a run of an existing model, `model: {attach: FOLDER}`, for the same loop as any other run."""

from pathlib import Path
from typing import Any

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.label_cache import label_cache
from trainer.attach.attached import Attached
from trainer.attach.batches import ChatData
from trainer.attach.folder import (
    ExistingFolder,
    load_existing,
    open_existing_folder,
    open_existing_labels,
    open_existing_rows,
)
from trainer.attach.lengths import without_unfit
from trainer.attach.run_model import AttachedModel
from trainer.data.inputs import Inputs
from trainer.data.run_rows import without_unreadable
from trainer.evaluation.existing_evaluator import ExistingEvaluator
from trainer.model.borders import border
from trainer.recipes.attach_keys import problems_of_attach
from trainer.recipes.recipe import ExistingModel, Recipe
from trainer.training.align_trainer import AlignTrainer
from trainer.training.arguments import training_arguments


def existing_inputs(
    recipe: Recipe,
    make: Any,  # noqa: ANN401 - a function that makes labels, or None
    reporter: Reporter = SILENT,
    begun_with: str | None = None,
    *,
    first: bool = True,
) -> Inputs[ExistingFolder]:
    """Open what a run reads.

    Args:
        recipe: its `model` is an `ExistingModel`.
        make: makes labels if none fit, see `open_label_source`.
        reporter: receives progress.
        begun_with: see `open_label_source`.
        first: whether this is the first process, which says whatever each process does for itself.

    Raises:
        UserError: the folder, the data or the labels do not fit; or a key makes no sense for such a model.
    """
    assert isinstance(recipe.model, ExistingModel)
    if problems := problems_of_attach(recipe):  # a later stage names no model in the file
        raise UserError("; ".join(problems))
    folder = open_existing_folder(recipe.model.attach)
    heard = reporter if first else SILENT
    conversations = open_existing_rows(folder, recipe.data, reporter, first=first)
    store = open_existing_labels(recipe, folder, conversations, make, begun_with, heard)
    conversations = without_unreadable(conversations, recipe.data, store, heard)
    max_length = recipe.data.max_length
    conversations = without_unfit(conversations, recipe.data, folder.chat, store, max_length=max_length, reporter=heard)
    return Inputs(recipe, folder, conversations, store)


def build_existing(inputs: Inputs[ExistingFolder], out: Path, reporter: Reporter, callbacks: list[Any]) -> AlignTrainer:
    """Build the trainer of a run, whose checkpoints go below `out`.

    Raises:
        UserError: an input does not fit; see `load_existing` and `attach`.
    """
    recipe, folder, conversations = inputs.recipe, inputs.folder, inputs.conversations
    args = training_arguments(recipe, out)
    if args.world_size > 1:  # a process whose batch has no image uses no tower
        args.ddp_find_unused_parameters = True
    vlm = load_existing(folder, recipe)
    model = AttachedModel(vlm, Attached(vlm, folder.processor, inputs.store, recipe.loss, recipe.seed))
    if inputs.store is not None and (recipe.loss.sea.weight or conversations.held_out is not None):
        # Their first use would unpack them without a word.
        model.attached.cache = label_cache(inputs.store, reporter=reporter)
    data = ChatData(conversations.train, conversations.locate, folder.chat, max_length=recipe.data.max_length)
    evaluator = None
    if conversations.held_out is not None:
        evaluator = ExistingEvaluator(
            ChatData(conversations.held_out, conversations.locate, folder.chat, max_length=None),
            inputs.store,
            vocabulary=folder.vocabulary,
            prefix=recipe.loss.sea.word_prefix,
            batch_size=args.per_device_eval_batch_size,
            device=str(args.device),
        )
        evaluator.reporter = reporter
    with border("training_arguments: the Trainer cannot be made", "set other ones", given=True):
        return AlignTrainer(model, data, recipe, args, evaluator, callbacks)

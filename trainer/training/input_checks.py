"""Check what a run has opened, before its folder is begun."""

from typing import Any

from transformers import TrainingArguments

from sea_pipeline.core.errors import UserError
from trainer.data.inputs import Inputs
from trainer.recipes.recipe import ExistingModel


def check_inputs(inputs: Inputs[Any], args: TrainingArguments) -> None:
    """Refuse inputs from which a step, a measurement or L_a would get nothing.

    Raises:
        UserError: there are no held-out samples to measure, no whole micro-batch to train on, or nothing to draw.
    """
    if inputs.recipe.evaluate_every and inputs.conversations.held_out is None:
        raise UserError("evaluate_every: there are no held-out samples; set data.held_out or data.evaluate")
    rows, batch = len(inputs.conversations.train), args.train_batch_size
    if args.dataloader_drop_last and rows < batch:
        raise UserError(
            f"training_arguments.dataloader_drop_last: drops all {rows} rows to train on, because they do not fill a "
            f"micro-batch of {batch}; set it to false, or a smaller training_arguments.per_device_train_batch_size"
        )
    if inputs.recipe.loss.sea.weight:
        _check_windows(inputs)
        _check_words(inputs)


def _check_windows(inputs: Inputs[Any]) -> None:
    """Refuse windows of which none fits on the grid; those of existing models differ by image."""
    sea = inputs.recipe.loss.sea
    if isinstance(inputs.recipe.model, ExistingModel) or sea.ragged == "keep":
        return
    rows, columns = inputs.folder.grid
    if sea.window > min(rows, columns):
        raise UserError(
            f"loss.sea.window: {sea.window} does not fit into the {rows} x {columns} visual tokens of an image, and "
            "loss.sea.ragged: drop leaves out what it does not fit; lower it, or set loss.sea.ragged: keep"
        )


def _check_words(inputs: Inputs[Any]) -> None:
    """Refuse labels without a word for any patch."""
    store = inputs.store  # None if they are made later
    if store is not None and len(store) and not store.has_words():
        raise UserError(
            f"{store.path}: no patch of its {len(store):,} images has a word with a score above 0, so loss.sea would "
            "train nothing; label again with another encoder, sign or word list into another folder, and name it with "
            "labels.path"
        )

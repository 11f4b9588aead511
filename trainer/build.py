"""A run's inputs to a trainer that is ready: model, terms, data, metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sea_pipeline.progress import ProgressBar
from sea_pipeline.store import LabelStore
from sea_pipeline.teacher import TargetStore
from trainer.arguments import training_arguments
from trainer.balance import Balance
from trainer.basic import BasicTerm
from trainer.borders import border
from trainer.data import Labels, TrainingData
from trainer.evaluate import Evaluator
from trainer.features import tower_features
from trainer.load import ModelFolder, load_model, sea_term
from trainer.loop import AlignTrainer, learning_rate
from trainer.model import AlignedLlava, part
from trainer.recipe import Recipe
from trainer.run_rows import Conversations
from trainer.sources import labels_for
from trainer.supervision import Supervision


@dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    recipe: Recipe
    folder: ModelFolder
    conversations: Conversations
    store: LabelStore | None
    targets: TargetStore | None = None


def build(inputs: Inputs, out: Path, progress: ProgressBar, callbacks: list[Any]) -> AlignTrainer:
    """The trainer of a run, whose checkpoints go below `out`.

    Raises:
        UserError: an input does not fit; see `load_model`, `sea_term`, `basic_term` and `tower_features`.
    """
    recipe, folder, store = inputs.recipe, inputs.folder, inputs.store
    sea = recipe.loss.sea
    args = training_arguments(recipe, out)
    model = load_model(folder, recipe)
    labels = labels_for(store, folder, sea, transfer=recipe.labels.transfer) if store else None
    if sea.weight:
        assert store is not None
        model.sea_term = sea_term(folder, store.words, sea)
    if basic := [name for name in recipe.loss.terms() if name != "sea"]:
        model.basic_term = basic_term(model, folder, recipe, basic)
    balances = {name: Balance(term.weight, term.ratio) for name, term in recipe.loss.terms().items()}
    data = _data(inputs, labels if sea.weight else None)
    if recipe.data.keep_features:
        model.model.vision_tower.to(args.device)  # the trainer moves all of the model, but later
        images = len(inputs.conversations.image_ids) * (1 + recipe.labels.crops)
        with progress("features", images, 0) as advance:
            data.kept = tower_features(model, data, advance)
    evaluator = _evaluator(inputs, labels, args.per_device_eval_batch_size, str(args.device))
    with border("training_arguments: the Trainer cannot be made", "set other ones", given=True):
        return AlignTrainer(model, balances, data, recipe, args, evaluator, callbacks)


def basic_term(model: AlignedLlava, folder: ModelFolder, recipe: Recipe, terms: Sequence[str]) -> BasicTerm:
    """BASIC's terms of a model, with supervision by its own LLM unless the recipe names a teacher.

    Raises:
        UserError: the LLM is of a family whose attention cannot be looked at.
    """
    basic, precision = recipe.loss.basic, recipe.loss.sds.precision
    half = precision == "bfloat16" or (precision == "auto" and recipe.training_arguments.get("bf16"))
    return BasicTerm(
        terms,
        folder.vocabulary,
        supervision=Supervision(model.model.language_model, basic) if recipe.teacher is None else None,
        equal=basic.degree == "equal",
        prompt_only=basic.text == "prompt",
        temperature=recipe.loss.sds.temperature,
        matmul_dtype=torch.bfloat16 if half else None,
    )


def _data(inputs: Inputs, labels: Labels | None) -> TrainingData:
    recipe, folder, conversations = inputs.recipe, inputs.folder, inputs.conversations
    return TrainingData(
        conversations.train,
        conversations.locate,
        folder.processor,
        folder.grid,
        labels=labels,
        targets=inputs.targets,
        crops=recipe.labels.crops,
        random_crop=recipe.data.random_crop,
        seed=recipe.seed,
    )


def _evaluator(inputs: Inputs, labels: Labels | None, batch_size: int, device: str) -> Evaluator | None:
    folder, conversations = inputs.folder, inputs.conversations
    if conversations.held_out is None:
        return None
    return Evaluator(
        TrainingData(conversations.held_out, conversations.locate, folder.processor, folder.grid),
        labels,
        inputs.store,
        vocabulary=folder.vocabulary,
        prefix=inputs.recipe.loss.sea.word_prefix,
        batch_size=batch_size,
        device=device,
    )


def trainable(model: AlignedLlava, recipe: Recipe) -> dict[str, tuple[int, int, float | None]]:
    """By part: parameters, those that train, and their peak learning rate."""
    found: dict[str, tuple[int, int, float | None]] = {}
    for name, parameter in model.named_parameters():
        total, trains, rate = found.get(part(name), (0, 0, None))
        count = parameter.numel()
        if parameter.requires_grad:
            trains, rate = trains + count, learning_rate(name, recipe)
        found[part(name)] = (total + count, trains, rate)
    return found

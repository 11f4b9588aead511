"""Build a trainer, with its model, terms, data and metrics, from a run's inputs."""

from pathlib import Path
from typing import Any

from sea_pipeline.core.progress import Reporter
from trainer.data.dataset import TrainingData, TrainingLabels
from trainer.data.inputs import Inputs, labels_for
from trainer.data.kept_features import tower_features
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.premise import Premise, premise
from trainer.model.borders import border
from trainer.model.load import ModelFolder, load_model
from trainer.model.terms import basic_term, lens_of, reader_of, sea_term
from trainer.recipes.recipe import Recipe
from trainer.training.align_trainer import AlignTrainer, TrainedModel, learning_rate
from trainer.training.arguments import training_arguments


def build(inputs: Inputs[ModelFolder], out: Path, reporter: Reporter, callbacks: list[Any]) -> AlignTrainer:
    """Build the trainer of a run, whose checkpoints go below `out`.

    Raises:
        UserError: an input does not fit; see `load_model`, `sea_term`, `basic_term` and `tower_features`.
    """
    recipe, folder, store = inputs.recipe, inputs.folder, inputs.store
    sea = recipe.loss.sea
    args = training_arguments(recipe, out)
    model = load_model(folder, recipe)
    labels = labels_for(store, folder, sea, transfer=recipe.labels.transfer, reporter=reporter) if store else None
    if sea.weight:
        assert store is not None
        model.sea_term = sea_term(folder.processor.tokenizer, store.words, sea)
    if basic := recipe.loss.basic_terms():
        model.llm.to(args.device)  # needed before the trainer moves the whole model
        model.basic_term = basic_term(model, folder, recipe, basic, lens_of(model, folder, recipe, reporter))
    data = _data(inputs, labels if sea.weight else None)
    if recipe.data.keep_features:
        model.model.vision_tower.to(args.device)
        images = len(inputs.conversations.image_ids) * (1 + recipe.labels.crops)
        with reporter.progress("features", images) as advance:
            data.kept = tower_features(model, data, advance)
    evaluator = _evaluator(inputs, labels, args.per_device_eval_batch_size, str(args.device))
    if evaluator is not None:
        evaluator.reporter = reporter
    with border("training_arguments: the Trainer cannot be made", "set other ones", given=True):
        return AlignTrainer(model, data, recipe, args, evaluator, callbacks)


def premise_of(model: TrainedModel, inputs: Inputs[Any]) -> Premise | None:
    """Check BASIC's premise on the model's LLM.

    Returns None if no term is made from the LLM's layers.
    """
    recipe, folder, term = inputs.recipe, inputs.folder, model.basic_term
    if not recipe.loss.basic_terms() or recipe.teacher is not None:
        return None
    lens = term.supervision.lens if term is not None and term.supervision is not None else None
    return premise(reader_of(model, folder), recipe.loss.basic, lens, str(folder.path))


def _data(inputs: Inputs[ModelFolder], labels: TrainingLabels | None) -> TrainingData:
    recipe, folder, conversations = inputs.recipe, inputs.folder, inputs.conversations
    return TrainingData(
        conversations.train,
        conversations.locate,
        folder,
        labels=labels,
        targets=inputs.targets,
        crops=recipe.labels.crops,
        random_crop=recipe.data.random_crop,
        seed=recipe.seed,
    )


def _evaluator(
    inputs: Inputs[ModelFolder], labels: TrainingLabels | None, batch_size: int, device: str
) -> Evaluator | None:
    folder, conversations = inputs.folder, inputs.conversations
    if conversations.held_out is None:
        return None
    return Evaluator(
        TrainingData(conversations.held_out, conversations.locate, folder),
        labels,
        inputs.store,
        vocabulary=folder.vocabulary,
        prefix=inputs.recipe.loss.sea.word_prefix,
        batch_size=batch_size,
        device=device,
    )


def trainable(model: TrainedModel, recipe: Recipe) -> dict[str, tuple[int, int, float | None]]:
    """Count the parameters of each part.

    The values are all parameters, those that train, and their peak learning rate. A stage without L_lm has loaded only
    a part of the LLM, which the name says.
    """
    found: dict[str, tuple[int, int, float | None]] = {}
    for name, parameter in model.named_parameters():
        part = model.part(name)
        shown = "llm, loaded part" if part == "llm" and not model.with_lm else part
        total, trains, rate = found.get(shown, (0, 0, None))
        count = parameter.numel()
        if parameter.requires_grad:
            trains, rate = trains + count, learning_rate(part, name, recipe)
        found[shown] = (total + count, trains, rate)
    return found

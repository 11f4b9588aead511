"""Refuse arguments that would not do what they say, before a run begins."""

import copy
import inspect
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import SchedulerType, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from sea_pipeline.core.errors import UserError
from trainer.measures.metrics import HIGHER_IS_BETTER
from trainer.recipes.recipe import ExistingModel, Recipe
from trainer.training.arguments import training_arguments
from trainer.training.run_folder import SUMMARY, folders_named, has_saved
from trainer.training.schedule import BY_EVALUATION

_WITHOUT_WARMUP = (SchedulerType.CONSTANT, *BY_EVALUATION)
_OF_GROUPS = {"lr": "learning_rates", "weight_decay": "training_arguments.weight_decay"}
"""Options of an optimizer that each group has of its own, with the keys that set them."""
_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
_HIDING = ("ddp_static_graph", "ddp_find_unused_parameters")
"""Arguments with which DDP copies the model's outputs, apart from each other."""


def effective_arguments(recipe: Recipe, out: Path | None) -> TrainingArguments:
    """Convert a recipe's arguments, each of which takes effect, before any work is done.

    A run that has saved something in the folder `out` goes on with what a new one is refused. If `out` is None, each
    folder of the recipe's name may be this run's, so ask again when it is known.

    Raises:
        UserError: see `training_arguments`; or an argument would do nothing, or harm.
    """
    folders = folders_named(recipe.name) if out is None else [out]
    begun = any(map(has_saved, folders))
    given = recipe.training_arguments
    if not begun and str(given.get("optim", "")).startswith("schedule_free"):
        raise UserError(
            f"training_arguments.optim: the weights that {given['optim']} trains are means, which a run would neither "
            "measure nor save; choose another, such as adamw_torch"
        )
    args = training_arguments(recipe, Path(), finished=any((one / SUMMARY).is_file() for one in folders))
    if not begun:
        _refuse_hiding(args, recipe)
        _refuse_warmup(args, given)
        _refuse_direction(args, recipe)
        _refuse_unread(args, given)
    return args


def _refuse_hiding(args: TrainingArguments, recipe: Recipe) -> None:
    """Refuse what would hide the gradient of each term from its measurement."""
    measured = recipe.loss.lm and recipe.loss.terms() and not isinstance(recipe.model, ExistingModel)
    for name in _HIDING:
        if args.world_size > 1 and measured and getattr(args, name):
            raise UserError(
                f"training_arguments.{name}: DDP would hide the gradient of each term, which is measured; leave it "
                "out, because all that trains gets a gradient at each step"
            )


def _refuse_warmup(args: TrainingArguments, given: Mapping[str, Any]) -> None:
    kind = SchedulerType(args.lr_scheduler_type)
    if given.get("warmup_steps") and kind in _WITHOUT_WARMUP:
        instead = ", or set lr_scheduler_type: constant_with_warmup" if kind is SchedulerType.CONSTANT else ""
        raise UserError(f"training_arguments.warmup_steps: {kind.value} has no warm-up; leave it out{instead}")


def _refuse_direction(args: TrainingArguments, recipe: Recipe) -> None:
    """Refuse a followed metric that has no direction, and a schedule that follows it in the wrong one."""
    given, followed = recipe.training_arguments, args.metric_for_best_model
    if not recipe.evaluate_every or not followed:  # nothing follows it
        return
    if given.get("greater_is_better") is None and followed.removeprefix("eval_") not in HIGHER_IS_BETTER:
        raise UserError(
            f"training_arguments.metric_for_best_model: found {followed!r}; expected one of "
            f"{', '.join(HIGHER_IS_BETTER)}; for another metric, set greater_is_better, too"
        )
    options = args.lr_scheduler_kwargs  # given as JSON, too
    found = options.get("mode", "min") if isinstance(options, Mapping) else "min"
    mode, better = ("max", "higher") if args.greater_is_better else ("min", "lower")
    if SchedulerType(args.lr_scheduler_type) in BY_EVALUATION and found != mode:
        raise UserError(
            f"training_arguments.lr_scheduler_kwargs.mode: expected {mode}, because a {better} {followed} is better; "
            f"found {found}; set it to {mode}"
        )


def _refuse_unread(args: TrainingArguments, given: Mapping[str, Any]) -> None:
    """Refuse options that the optimizer does not read, unless they say what it does without them."""
    if (bare := _optimizer(args, optim_args=None)) is None:  # it needs the model, and forms groups of its own
        return
    optim = OptimizerNames(args.optim).value
    values = {name: each.default for name, each in inspect.signature(bare[0]).parameters.items()} | bare[1]
    for each in filter(None, (args.optim_args or "").replace(" ", "").split(",")):  # as transformers cuts it
        name, _, value = each.partition("=")
        if name in _OF_GROUPS:
            raise UserError(f"training_arguments.optim_args: {name} does nothing; set {_OF_GROUPS[name]} in its place")
        if _optimizer(args, optim_args=f"{name}=?") == bare and str(values.get(name)).lower() != value.lower():
            raise UserError(f"training_arguments.optim_args: {optim} does not read {each}; leave it out")
    for name in _ADAM:
        default = getattr(TrainingArguments, name)
        if given.get(name, default) != default and _optimizer(args, optim_args=None, **{name: default / 2}) == bare:
            raise UserError(f"training_arguments.{name}: {optim} does not read it; leave it out")


def _optimizer(args: TrainingArguments, **changes: Any) -> tuple[Any, dict[str, Any]] | None:  # noqa: ANN401 - values of arguments
    """Return an optimizer's class and its options, or None if there is none with these arguments."""
    changed = copy.copy(args)
    for name, value in changes.items():
        setattr(changed, name, value)
    with suppress(Exception):  # transformers converts each option that it reads in its own way
        return Trainer.get_optimizer_cls_and_kwargs(changed)
    return None

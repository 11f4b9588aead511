"""The recipe's `training_arguments` as transformers takes them."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer, TrainingArguments

from sea_pipeline.errors import UserError, one_line
from trainer.recipe import Recipe

DEFAULTS: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,  # a share of all steps
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": 2,
    "report_to": "none",
    "disable_tqdm": True,
    "remove_unused_columns": False,
    "label_names": [],
    "ddp_find_unused_parameters": False,  # all that trains gets a gradient; else outputs are cut from the losses' graph
    "logging_nan_inf_filter": False,  # a loss that is not finite stops the run
    "dataloader_pin_memory": torch.cuda.is_available(),
    "dataloader_num_workers": 4 if torch.cuda.is_available() else 0,  # a GPU would wait for pictures to be read
    "use_cpu": not torch.accelerator.is_available(),
}
"""LLaVA's, where the recipe's `training_arguments` say nothing else."""


_REFUSED: dict[str, tuple[object, str]] = {
    "save_only_model": (False, "a stopped run could not go on as if it had not been stopped"),
    "save_on_each_node": (False, "all processes read and write one folder"),
    "load_best_model_at_end": (False, "a run keeps its last weights"),
    "label_smoothing_factor": (0, "L_lm has no smoothing"),
    "remove_unused_columns": (False, "the columns are the losses'"),
    "eval_strategy": (None, "set `evaluate_every`"),
    "eval_steps": (None, "set `evaluate_every`"),
}
"""Arguments that would do harm or nothing, with the value that may be given and the reason."""


def training_arguments(recipe: Recipe, out: Path) -> TrainingArguments:
    """The recipe's arguments over `DEFAULTS`.

    Raises:
        UserError: transformers does not know one, or refuses its value; FSDP where there is nothing to cut.
    """
    given = recipe.training_arguments
    fixed = {"output_dir": str(out / "checkpoints"), "seed": recipe.seed, "data_seed": recipe.seed}
    if both := set(fixed) & set(given) | {"learning_rate"} & set(given):
        raise UserError(f"training_arguments.{sorted(both)[0]}: set `seed`, `learning_rates` or --out instead")
    _refuse(given)
    evaluation = {"eval_strategy": "steps", "eval_steps": recipe.evaluate_every} if recipe.evaluate_every else {}
    if given.get("fsdp_config"):  # transformers writes into it
        given = given | {"fsdp_config": dict(given["fsdp_config"])}
    try:
        args = TrainingArguments(**DEFAULTS | evaluation | given | fixed)
        with suppress(ValueError):  # of those that want the model first
            Trainer.get_optimizer_cls_and_kwargs(args)  # whose package may be absent
    except (TypeError, ValueError, ImportError) as error:
        reason = one_line(error).replace("TrainingArguments.__init__() got an", "found an")
        raise UserError(f"training_arguments: {reason}") from error
    if args.fsdp:
        _check_fsdp(args, recipe)
    return args


def _refuse(given: Mapping[str, Any]) -> None:
    for name, (allowed, reason) in _REFUSED.items():
        if name in given and given[name] != allowed:
            raise UserError(f"training_arguments.{name}: found {given[name]!r}; {reason}; leave it out")
    if (size := given.get("per_device_train_batch_size", 1)) == 0:
        raise UserError(f"training_arguments.per_device_train_batch_size: expected at least 1; found {size}")
    if given.get("fp16") and not torch.cuda.is_available():
        raise UserError("training_arguments.fp16: it does nothing without a GPU; set bf16: true, or leave it out")
    accelerator = given.get("accelerator_config")
    for name in ("dispatch_batches", "split_batches"):
        if isinstance(accelerator, Mapping) and accelerator.get(name):
            raise UserError(
                f"training_arguments.accelerator_config.{name}: accelerate would cut tensors that are not of one row a "
                "sample; leave it out"
            )


def _check_fsdp(args: TrainingArguments, recipe: Recipe) -> None:
    said = "training_arguments.fsdp"
    version = cast("dict[str, Any]", args.fsdp_config).get("version", 2)
    if version != 2:
        raise UserError(f"{said}_config.version: expected 2; found {version}; leave it out")
    if args.parallel_mode.value != "distributed":
        raise UserError(
            f"{said}: it cuts weights over processes; found one; begin with "
            "torchrun --nproc-per-node N -m sea_pipeline train, or set it to false"
        )
    if not recipe.loss.lm:
        raise UserError(f"{said}: with loss.lm = 0 there is no LLM to cut; set it to false")

"""Convert the recipe's `training_arguments` to transformers' `TrainingArguments`."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from transformers.utils.import_utils import is_liger_kernel_available

from sea_pipeline.core.errors import UserError, one_line
from trainer.measures.metrics import HIGHER_IS_BETTER
from trainer.model.borders import border
from trainer.recipes.recipe import Recipe
from trainer.training.argument_table import REFUSED, SECRET
from trainer.training.argument_types import checked_arguments, is_checked
from trainer.training.schedule import BY_EVALUATION, check_schedule
from trainer.training.trackers import tracked_name

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
    "ddp_find_unused_parameters": False,  # everything trained gets a gradient; True cuts outputs from the losses' graph
    "logging_nan_inf_filter": False,  # so that AlignTrainer sees a loss that is not finite, and stops
    "dataloader_pin_memory": torch.cuda.is_available(),
    "dataloader_num_workers": 4 if torch.cuda.is_available() else 0,  # else a GPU would wait for images to be read
    "use_cpu": not torch.accelerator.is_available(),
}
"""Values for keys that the recipe's `training_arguments` do not set.

Schedule, warm-up, weight decay, epochs and logging are LLaVA-1.5's. Clipping is not, because LLaVA does not clip; its
recipes say `max_grad_norm: 0`. Batch size and checkpoints are our own choice.
"""

_YES = ("y", "yes", "t", "true", "on", "1")
"""The values of an environment variable that accelerate and transformers read as true."""
_NO = ("", "n", "no", "f", "false", "off", "0")
_LAUNCHED = {
    "ACCELERATE_MIXED_PRECISION": ("bf16", "fp16"),
    "ACCELERATE_DYNAMO_BACKEND": ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    "ACCELERATE_USE_FSDP": ("fsdp",),
}
"""Variables by which `accelerate launch` changes a run, and the keys that say the same."""
_INSTEAD = (
    "weights are put together of FSDP's pieces alone; begin with torchrun, and set training_arguments.fsdp: true and "
    "fsdp_config: {version: 2, transformer_layer_cls_to_wrap: [LlamaDecoderLayer]}, or the LLM's own layer"
)


def training_arguments(recipe: Recipe, out: Path, *, finished: bool = False) -> TrainingArguments:
    """Combine the recipe's arguments with `DEFAULTS`.

    A run that is finished needs no processes and no GPU, and its schedule is not checked.

    Raises:
        UserError: transformers does not know an argument or refuses its value; an argument is of another type; FSDP has
            nothing to shard; DeepSpeed is asked for; a process has several GPUs; a learning rate would rise above its
            peak.
    """
    given, peaks = recipe.training_arguments, _peaks(recipe)
    fixed = {"output_dir": str(out / "checkpoints"), "seed": recipe.seed, "data_seed": recipe.seed}
    if both := set(fixed) & set(given) | {"learning_rate"} & set(given):
        raise UserError(f"training_arguments.{sorted(both)[0]}: set `seed`, `learning_rates` or --out instead")
    _refuse(given)
    given = checked_arguments(given)
    _refuse_values(given)
    named = {"run_name": tracked_name(out)} if out != Path() else {}
    fixed |= {"learning_rate": max(peaks)} if peaks else {}  # transformers derives other values from it
    evaluation = _evaluation(recipe)
    fixed |= _direction(evaluation | given)  # transformers' default goes by the name's end
    if isinstance(given.get("fsdp_config"), Mapping):  # a copy, because transformers writes into it
        given = given | {"fsdp_config": dict(given["fsdp_config"])}
    with border("training_arguments", "set another value, or leave it out", given=True):
        try:
            args = TrainingArguments(**DEFAULTS | named | evaluation | given | fixed)
        except (ValueError, ImportError) as error:
            raise _named(error, given) from error
        with suppress(ValueError):  # some optimizers need the model first
            Trainer.get_optimizer_cls_and_kwargs(args)
        get_reporting_integration_callbacks(args.report_to)
    services = set(cast("list[str]", args.report_to)) - {"azure_ml", "flyte"}  # which the list below never has
    for service in sorted(services - set(get_available_reporting_integrations())):
        raise UserError(
            f"training_arguments.report_to: the package of {service} is not installed, or it is switched off; install "
            "it, or leave it out"
        )
    if not finished:
        _check_devices(args)
        _check_liger(args)
        _check_fsdp(args, recipe)
    if peaks and not finished:  # a first check; the data has yet to say how many steps there are
        steps = args.max_steps if args.max_steps > 0 else 1000 + 10 * int(args.warmup_steps)
        check_schedule(args, peaks, steps)
    return args


def _evaluation(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments that say when to evaluate, and what a schedule follows."""
    found: dict[str, Any] = {}
    if recipe.evaluate_every:
        found = {"eval_strategy": "steps", "eval_steps": recipe.evaluate_every}
    if (schedule := recipe.training_arguments.get("lr_scheduler_type")) in BY_EVALUATION:
        if not found:
            raise UserError(
                f"training_arguments.lr_scheduler_type: {schedule} follows a metric of held-out samples; set "
                "`evaluate_every`"
            )
        found |= {"metric_for_best_model": "lm_loss"}  # transformers' default would be a loss that we do not have
    return found


def _direction(given: Mapping[str, Any]) -> dict[str, bool]:
    """Return the argument that says whether a higher metric is better, unless it is given."""
    name = str(given.get("metric_for_best_model")).removeprefix("eval_")
    known = given.get("greater_is_better") is None and name in HIGHER_IS_BETTER
    return {"greater_is_better": HIGHER_IS_BETTER[name]} if known else {}


def _named(error: Exception, given: Mapping[str, Any]) -> Exception:
    """Name the argument that transformers refuses as users write it, if its message does."""
    text = one_line(error)
    places = {name: found.start() for name in given if (found := re.search(rf"(?<![\w.]){name}(?!\w)", text))}
    places |= {name: -1 for name, value in given.items() if not is_checked(name) and text.startswith(f"{value} ")}
    if not places:
        return error
    name = min(places, key=places.__getitem__)
    value = "false" if given[name] is True else "VALUE"
    return UserError(
        f"training_arguments.{name}: {text.replace(f'--{name}', name)}; set another value with --set "
        f"training_arguments.{name}={value}, or leave it out"
    )


@contextmanager
def without_traces() -> Iterator[None]:
    """Undo at the block's end what transformers sets for the whole process: TF32 and variables of the environment."""
    backends: Any = torch.backends
    newer = [(backends, "fp32_precision")]
    older = [(backends.cuda.matmul, "allow_tf32"), (backends.cudnn, "allow_tf32")]
    switches = newer if hasattr(*newer[0]) else older
    before, environment = [getattr(*switch) for switch in switches], dict(os.environ)
    try:
        yield
    finally:
        for (part, name), value in zip(switches, before, strict=True):
            if getattr(part, name) != value:
                setattr(part, name, value)
        for name in os.environ.keys() - environment:
            del os.environ[name]
        os.environ.update(environment)


def _peaks(recipe: Recipe) -> list[float]:
    """List the learning rates of what trains."""
    rates, sea = recipe.learning_rates, recipe.loss.sea
    scale = rates.logit_scale if sea.weight and sea.logit_scale_learnable else None
    return [rate for rate in (rates.projector, rates.llm, rates.vision, scale) if rate is not None]


def _refuse(given: Mapping[str, Any]) -> None:
    if given.get("deepspeed"):
        raise UserError(f"training_arguments.deepspeed: {_INSTEAD}")
    _refuse_launched(given)
    for name, (allowed, reason) in REFUSED.items():
        if (found := given.get(name)) is not None and found != allowed:
            shown = "a value" if name in SECRET else repr(found)
            raise UserError(f"training_arguments.{name}: found {shown}; {reason}; leave it out")
    clip = given.get("max_grad_norm", 0)
    if isinstance(clip, bool) or not isinstance(clip, int | float) or not clip >= 0:
        raise UserError(f"training_arguments.max_grad_norm: expected a number, 0 for no clipping; found {clip!r}")


def _refuse_values(given: Mapping[str, Any]) -> None:
    _refuse_no_steps(given)
    if given.get("fp16") and not torch.cuda.is_available():
        raise UserError("training_arguments.fp16: it does nothing without a GPU; set bf16: true, or leave it out")
    accelerator = given.get("accelerator_config")
    for name in ("dispatch_batches", "split_batches"):
        if isinstance(accelerator, Mapping) and accelerator.get(name):
            raise UserError(
                f"training_arguments.accelerator_config.{name}: accelerate would cut tensors that are not of one row a "
                "sample; leave it out"
            )


def _refuse_launched(given: Mapping[str, Any]) -> None:
    """Refuse what `accelerate launch` says by variables of the environment, and the recipe does not say."""
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG"):
        if (said := os.environ.get(name, "")).lower() in _YES:
            raise UserError(f"the environment variable {name} is {said!r}: {_INSTEAD}, and unset {name}")
    for name, keys in _LAUNCHED.items():
        said, asked = os.environ.get(name, ""), [key for key in keys if given.get(key)]
        if said.lower() not in _NO and not asked:  # what a recipe says holds in place of the variable
            wanted = " or ".join(f"training_arguments.{key}" for key in keys)
            raise UserError(
                f"the environment variable {name} is {said!r}, which run.json would not say; set {wanted} in its "
                f"place, or unset {name} (accelerate launch sets it by its own configuration)"
            )


def _refuse_no_steps(given: Mapping[str, Any]) -> None:
    """Refuse a number of steps or epochs that would end as a finished run of an untrained model."""
    steps, epochs = given.get("max_steps", -1), given.get("num_train_epochs", 1)
    if steps == 0:
        raise UserError("training_arguments.max_steps: expected at least 1; found 0, which trains nothing")
    if steps < 0 and not epochs > 0:
        raise UserError(f"training_arguments.num_train_epochs: expected more than 0; found {epochs}")


def _check_devices(args: TrainingArguments) -> None:
    """Refuse several GPUs in one process.

    nn.DataParallel would cut a batch among them, and its positions are those in the whole batch.
    """
    if args.n_gpu > 1:
        raise UserError(
            f"expected one GPU for a process; found {args.n_gpu}; begin with "
            f"torchrun --nproc-per-node {args.n_gpu} -m sea_pipeline train, or set the environment's "
            "CUDA_VISIBLE_DEVICES to one of them, such as 0"
        )


def _check_liger(args: TrainingArguments) -> None:
    """Refuse kernels that transformers would look for only when the model is loaded and measured."""
    if args.use_liger_kernel and args.device.type == "cpu":
        raise UserError("training_arguments.use_liger_kernel: its kernels need a GPU; leave it out")
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise UserError(
            "training_arguments.use_liger_kernel: expected the package liger-kernel, as new as transformers asks for; "
            "pip install -U liger-kernel, or leave it out"
        )


def _check_fsdp(args: TrainingArguments, recipe: Recipe) -> None:
    if not args.fsdp:
        return
    said = "training_arguments.fsdp"
    version = cast("dict[str, Any]", args.fsdp_config).get("version", 2)
    if version != 2:
        raise UserError(f"{said}_config.version: expected 2; found {version}; leave it out")
    if args.torch_compile:
        raise UserError(f"{said}: weights that are cut and compiled cannot be saved; set it or torch_compile to false")
    if args.parallel_mode.value != "distributed":
        raise UserError(
            f"{said}: it cuts weights over processes; found one; begin with "
            "torchrun --nproc-per-node N -m sea_pipeline train, or, for a new run, set it to false"
        )
    if not recipe.loss.lm:
        raise UserError(f"{said}: with loss.lm = 0 there is no LLM to cut; set it to false")

"""Check transformers' learning-rate schedules, none of which may leave the range from 0 to the recipe's rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, TrainingArguments, get_scheduler

from sea_pipeline.core.errors import UserError, one_line

BY_EVALUATION = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
"""Schedules that follow a metric of held-out samples."""

_WITHOUT = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)
"""Schedules that would ignore any option without a word."""
_FLOORS = {"min_lr": "min_lr_rate", "lr_end": ""}
"""Options that are rates, with the option that says the same as a share of the peak, or an empty name."""
_SHARES = (SchedulerType.COSINE_WITH_MIN_LR, SchedulerType.COSINE_WARMUP_WITH_MIN_LR)
_WHERE = "training_arguments.lr_scheduler_kwargs"


def schedule_options(args: TrainingArguments, peaks: Sequence[float]) -> dict[str, Any]:
    """Return the options of the schedule for an optimizer whose groups have these peak rates.

    Raises:
        UserError: an option is a rate although there are several peaks, or is above the peak, or would be ignored.
    """
    kind, given = SchedulerType(args.lr_scheduler_type), args.lr_scheduler_kwargs or {}
    if not isinstance(given, Mapping):
        raise UserError(f"{_WHERE}: expected names and values; found {given!r}")
    options = dict(given)
    if options and kind in _WITHOUT:
        raise UserError(f"{_WHERE}: {kind.value} has no options; found {', '.join(options)}; leave them out")
    for name in _FLOORS.keys() & options.keys():
        _check_floor(name, options[name], kind, sorted(set(peaks), reverse=True))
    if kind is SchedulerType.GREEDY:
        if options.get("max_lr", list(peaks)) != list(peaks):
            raise UserError(f"{_WHERE}.max_lr: no rate rises above its own in learning_rates; leave it out")
        if not 0 < options.get("factor", 0.5) < 1:
            raise UserError(f"{_WHERE}.factor: expected more than 0 and less than 1; found {options['factor']}")
        options = {"min_lr": 0.0} | options | {"max_lr": list(peaks)}  # the defaults are 1e-3 and 1, whatever the peak
    return options


def _check_floor(name: str, value: Any, kind: SchedulerType, peaks: Sequence[float]) -> None:  # noqa: ANN401 - any YAML
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{_WHERE}.{name}: expected a number; found {value!r}")
    if value and len(peaks) > 1:
        instead = f"give {_FLOORS[name]}, a share of each" if kind in _SHARES else "leave it out"
        rates = ", ".join(f"{peak:g}" for peak in peaks)
        raise UserError(f"{_WHERE}.{name}: {value:g} is another share of each of the learning rates {rates}; {instead}")
    if not 0 <= value <= peaks[-1]:
        raise UserError(
            f"{_WHERE}.{name}: expected at least 0 and at most the learning rate, {peaks[-1]:g}; found {value:g}"
        )


def check_schedule(args: TrainingArguments, peaks: Sequence[float], steps: int) -> None:
    """Run a schedule over a run's steps with an optimizer of one number, before anything trains.

    Raises:
        UserError: the options do not fit, see also `schedule_options`; or a rate leaves the range from 0 to its peak;
            or all are 0.
    """
    kind, warmup = SchedulerType(args.lr_scheduler_type), args.get_warmup_steps(steps)
    options = schedule_options(args, peaks)
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": peak} for peak in peaks]
    try:
        scheduler = get_scheduler(kind, torch.optim.SGD(groups, lr=max(peaks)), warmup, steps, options)
        factor = scheduler.lr_lambdas[0] if isinstance(scheduler, LambdaLR) else lambda _: 1.0
        shares = [float(factor(step)) for step in range(steps + 1)]
    except (TypeError, ValueError, ArithmeticError) as error:
        said = one_line(error).replace("()", "")
        raise UserError(
            f"{_WHERE}: {kind.value} over {steps} steps, {warmup} of them warm-up, is not possible: {said}; give other "
            "options, or fewer warmup_steps"
        ) from error
    shares = shares[:steps]  # the last value is never used
    if not any(shares):
        raise UserError(
            f"training_arguments.warmup_steps: nothing would train, because {warmup} of {steps} steps is warm-up and "
            "starts at a learning rate of 0; set warmup_steps: 0, or train more steps"
        )
    for step, share in enumerate(shares):
        if not -1e-9 <= share <= 1 + 1e-9:
            raise UserError(
                f"{_WHERE}: at step {step + 1} of {steps} {kind.value} would have {share:.3g} times the learning rate; "
                "expected a share from 0 to 1; give other options"
            )

"""Keep checkpoints for good at the steps of a recipe's `keep_checkpoints`, with weights alone, for export.

They lie apart from the checkpoints that a run resumes from. Those hold the optimizer, too, and only the newest stay.
"""

import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import TrainerCallback

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Reporter
from sea_pipeline.storage.publish import publish_folder, remove_folder
from trainer.model import checkpoints
from trainer.model.borders import saving
from trainer.model.fsdp import agreed, round_state, trained, whole_state
from trainer.model.run_record import kept_path
from trainer.recipes.recipe import Recipe


def steps_to_keep(asked: Sequence[float], last: int) -> list[int]:
    """List the steps of a run that `keep_checkpoints` names, in order.

    The last step is left out, because its weights are the model folder. Shares are rounded up, as transformers rounds
    those of `save_steps`.

    Args:
        asked: steps from 1 on, or shares of all steps if below 1.
        last: number of steps of the run.

    Raises:
        UserError: a step lies after the last one.
    """
    if beyond := [step for step in asked if step > last]:
        advice = f"give steps up to {last - 1}, or shares of the run, such as 0.5"
        if last == 1:
            advice = "leave keep_checkpoints out, as the last step is the model folder"
        raise UserError(f"keep_checkpoints: found step {beyond[0]}, and the run has {last:,} steps; {advice}")
    steps = {math.ceil(Decimal(str(step)) * last) if step < 1 else int(step) for step in asked}
    return sorted(steps - {last})


class KeptCheckpoints(TrainerCallback):
    """Write the trained weights at each step that is to be kept.

    All processes take part.

    Args:
        recipe: the run's recipe.
        run: the run's folder.
        dtype: dtype of the model folder that the run writes at its end.
        reporter: is told of steps that are already past and cannot be kept.
    """

    def __init__(self, recipe: Recipe, run: Path, dtype: torch.dtype, reporter: Reporter) -> None:
        self._asked = recipe.keep_checkpoints
        self._run = run
        # Adapters are merged before anything is rounded. Without L_lm each tensor keeps its dtype in the model folder.
        self._dtype = dtype if recipe.loss.lm and recipe.lora is None else None
        self._reporter = reporter
        self._steps: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ANN401
        """Choose the steps, and write the current one if it is to be kept and is not yet."""
        now = state.global_step
        self._steps = steps_to_keep(self._asked, state.max_steps)
        found = [[step for step in self._steps if step <= now and not kept_path(self._run, step).is_dir()]]
        broadcast_object_list(found)  # the first process may have written one when another one looks
        (absent,) = found
        if now in absent:  # the key was added to a run that resumes at exactly this step
            self._write(now, model, write=args.should_save)
        if behind := ", ".join(str(step) for step in absent if step < now):
            self._reporter.message(f"keep_checkpoints: the run is at step {now}; not kept: {behind}")

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ANN401
        """Write the step if it is to be kept."""
        if state.global_step in self._steps:
            self._write(state.global_step, model, write=args.should_save)

    def _write(self, step: int, model: nn.Module, *, write: bool) -> None:
        out = kept_path(self._run, step)
        state = whole_state(model, trained(model))
        if self._dtype is not None:
            round_state(state, self._dtype)
        with agreed(), saving(out):
            if write:
                remove_folder(out)  # written before the run resumed from an earlier step
                with publish_folder(out) as scratch:
                    checkpoints.save_trained(state, nn.ModuleDict(), scratch)
                    checkpoints.write_record(scratch, self._run, step)

"""Write checkpoints that hold what trains, and that are whole or absent, whichever process fails."""

import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import TrainerCallback, TrainingArguments

from sea_pipeline.core.errors import UserError
from trainer.model import checkpoints
from trainer.model.borders import saving
from trainer.model.fsdp import ShardingTrainer, agreed, trained, whole_state
from trainer.training.gradient_balance import Balance


class AsOftenAsAsked(TrainerCallback):
    """Log, evaluate, save and keep the best as the settings say, where the Trainer keeps to those of a checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401 - as in Trainer
        """Replace what the checkpoint's state says."""
        state.compute_steps(args, state.max_steps)
        state.best_metric, state.best_global_step = _best(args, state.log_history)


def _best(args: TrainingArguments, lines: Iterable[Mapping[str, Any]]) -> tuple[float | None, int | None]:
    """Return the best value of the followed metric at the checkpoints that are there, and the first step with it."""
    name, sign = f"eval_{(args.metric_for_best_model or '').removeprefix('eval_')}", 1 if args.greater_is_better else -1
    found = [(line[name], line["step"]) for line in lines if name in line and math.isfinite(line[name])]
    found = [each for each in found if (Path(str(args.output_dir)) / f"checkpoint-{each[1]}").is_dir()]
    return max(found, key=lambda each: sign * each[0], default=(None, None))


class ResumingTrainer(ShardingTrainer):
    """Write checkpoints to a temporary folder, and rename them when all files are on disk."""

    balances: Mapping[str, Balance]
    """The weights of the losses, which are part of a checkpoint."""
    _problems: list[str]
    """Reasons why the checkpoint that is being written is incomplete."""

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ANN401 - as in Trainer
        return str(checkpoints.unfinished(Path(super()._get_output_dir(trial))))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401 - as in Trainer
        folder = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        try:
            with agreed() as self._problems, saving(folder / name):
                super()._save_checkpoint(model, trial)
            with agreed(), saving(folder / name):
                if self.args.should_save:
                    checkpoints.publish(
                        checkpoints.unfinished(folder) / name,
                        folder,
                        limit=self.args.save_total_limit,
                        best=self.state.best_global_step,
                    )
        except UserError:
            shutil.rmtree(checkpoints.unfinished(folder), ignore_errors=True)  # it takes disk space
            raise

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # The Trainer names the folder in which the best one was written aside; `AsOftenAsAsked` finds it by its step.
        self.state.best_model_checkpoint = None
        super()._save_optimizer_and_scheduler(output_dir)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights and nothing else.

        All processes take part.
        """
        assert output_dir is not None
        model = self.accelerator.unwrap_model(self.model)
        state = whole_state(model, trained(model))
        try:
            with saving(Path(str(self.args.output_dir)) / Path(output_dir).name):
                if self.args.should_save:
                    checkpoints.save_trained(state, nn.ModuleDict(self.balances), Path(output_dir))
        except UserError as error:
            if not _internal_call:
                raise
            self._problems.append(str(error))  # raised later, because all processes must still save the optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target = cast("nn.Module", self.model if model is None else model)
        checkpoints.load_trained(target, nn.ModuleDict(self.balances), Path(resume_from_checkpoint))

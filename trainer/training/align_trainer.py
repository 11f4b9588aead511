"""Train with transformers.Trainer and our losses.

Only what differs from the Trainer is here.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow.compute as pc
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments
from transformers.training_args import OptimizerNames

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Advance
from trainer.attach.batches import ChatData
from trainer.attach.run_model import AttachedModel
from trainer.attach.step_means import StepMeans, samples_with_images
from trainer.data.dataset import TrainingData
from trainer.data.sampler import EpochSampler
from trainer.losses.equations import MAX_SCALE
from trainer.model import checkpoints
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.borders import border
from trainer.model.fsdp import whole
from trainer.recipes.recipe import Recipe
from trainer.training.gradient_balance import Balance, GradientRecorder
from trainer.training.resume import AsOftenAsAsked, ResumingTrainer
from trainer.training.schedule import check_schedule, schedule_options

TrainedModel = AlignedLlava | AttachedModel
"""What a run trains: a LLaVA of ours, or an existing model."""
_LEAST_SCALE = 2.0**-24
"""fp16's least number. Large weights of terms need a small factor of the loss, but none this small."""
_LENGTHS = ("visual_norm", "refined_norm")
_BESIDE = {"sea": ("sea_pairs",), "das": _LENGTHS, "sds": _LENGTHS}
"""What is logged beside a term."""


class AlignTrainer(ResumingTrainer):
    """Train an `AlignedLlava` or an `AttachedModel`.

    It adds to the Trainer: the scaled sum of the terms, learning rates by part, an order of samples that depends on
    (seed, epoch) alone, small checkpoints, our metrics, and a stop if a loss is not finite.

    Args:
        model: the model with the terms that are on; frozen parts are frozen already.
        data: samples for training.
        recipe: the run's recipe.
        args: the result of `training_arguments`.
        evaluator: computes the metrics by name; None if there are no held-out samples.
    """

    def __init__(
        self,
        model: TrainedModel,
        data: TrainingData | ChatData,
        recipe: Recipe,
        args: TrainingArguments,
        evaluator: Callable[[Any, Advance], dict[str, float]] | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        pad = data.processor.tokenizer.pad_token_id
        # An error of the Trainer's would blame its arguments.
        checkpoints.make_checkpoints_folder(Path(str(args.output_dir)))
        super().__init__(
            model=model,
            args=args,
            train_dataset=data,
            eval_dataset=data if evaluator else None,
            data_collator=cast("Any", data.collator(0 if pad is None else pad, recipe.seed)),
            callbacks=[AsOftenAsAsked(), *(callbacks or [])],
        )
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = True
        self.recipe = recipe
        self.balances = {name: Balance(term.weight, term.ratio) for name, term in recipe.loss.terms().items()}
        """The weights of the terms other than L_lm, by name."""
        self.data = data
        self._evaluator = evaluator
        self._recorder = GradientRecorder(model.projector)
        self._measures = model.measures_gradients
        self._terms: dict[str, torch.Tensor] = {}
        self._weights = {"lm": recipe.loss.lm} if recipe.loss.lm else {}
        """The weight of each term in the last loss, by name."""
        terms = [*self._weights, *self.balances]
        self._means = StepMeans(name for term in terms for name in (f"loss_{term}", *_BESIDE.get(term, ())))
        self._measured: dict[str, float] = {}
        self._gradients: dict[str, torch.Tensor] = {}
        """Sums over this step so far of each term's gradient w.r.t. the projector's parameters."""
        self._sampler: EpochSampler | None = None
        self._in_step: Sequence[torch.Tensor] = ()
        """Number of this step's micro-batches over all processes, and of samples with images; empty before step 1."""
        self._image_token_id = int(model.config.image_token_id)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401 - as in Trainer
        """Compute the weighted sum of the terms, see `Loss`.

        It is scaled so that the micro-batches and processes of a step add up to the step's loss.
        """
        with self._recorder.watching():
            given = model(**inputs)
        self._weights |= {name: float(balance.weight) for name, balance in self.balances.items()}
        with_images = samples_with_images(inputs, self._image_token_id)
        shares = self._shares(len(inputs["targets"]), with_images, num_items_in_batch)
        loss, self._terms = given.get("nothing", 0.0), {}
        for name in (name for name in self._weights if name in given):
            loss = loss + self._weights[name] * shares[name] * given[name]
            self._terms[name] = shares[name] * given[name].detach()
        if self._due() and "lm" in given:
            scaler = self.accelerator.scaler  # of fp16; it multiplies the loss before the backward pass
            by = scaler.get_scale() if scaler is not None else 1.0
            self._recorder.follow("lm", given.get("visual_lm"), scale=self.recipe.loss.lm * by)
            for name, balance in self.balances.items():
                self._recorder.follow(name, given.get(f"visual_{name}"), scale=float(balance.weight) * by)
        values = {f"loss_{name}": value for name, value in self._terms.items()} | given
        self._means.add(values, with_images, ends_step=self.accelerator.sync_gradients)
        return (loss, given) if return_outputs else loss

    def _shares(
        self, trained: int, with_images: torch.Tensor | int, trained_in_step: torch.Tensor | int | None
    ) -> dict[str, Any]:
        """Return each term's factor in a micro-batch's loss, so that the micro-batches of a step add up to its mean.

        Gradients and the logged loss are means over processes, so each share is multiplied by their number.

        Args:
            trained: number of the micro-batch's trained tokens.
            with_images: number of its samples that have images.
            trained_in_step: number of the step's trained tokens over all processes.
        """
        processes, steps = self.accelerator.num_processes, self.current_gradient_accumulation_steps
        every, all_with_images = self._in_step or (steps * processes, with_images * steps * processes)
        lm = processes / (max(1, trained) * every)
        if self.recipe.loss.norm == "token":
            assert trained_in_step is not None
            lm = processes / float(trained_in_step)
        # With `gather` L_a spans all processes, so a micro-step has one even if some micro-batches are blank.
        sea = 1 / steps if self.recipe.loss.sea.gather else processes / every
        return {"lm": lm, "sea": sea} | dict.fromkeys(("das", "sds"), with_images * processes / all_with_images)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Run one micro-batch forward and backward.

        Raises:
            UserError: a term is not finite. The weights have not been changed then.
        """
        rows = inputs["rows"]
        if (term := self.accelerator.unwrap_model(self.model).sea_term) is not None:
            term.clamp_scale()
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._measure()
        for name, value in self._terms.items():
            if not torch.isfinite(value):
                samples = ", ".join(repr(self.data.rows[row]["id"]) for row in rows[:4].tolist())
                raise UserError(
                    f"step {self.state.global_step + 1}: loss.{name} is {value.item()} (samples {samples}, …); stopped "
                    f"before the weights moved; look at these samples, or lower the learning rates; "
                    f"{checkpoints.kept(Path(str(self.args.output_dir)))}"
                )
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:  # noqa: ANN401 - as in Trainer
        """Return the norm of a step's gradient.

        Raises:
            UserError: it is not finite, and the weights have not been changed. fp16 skips such steps and lowers what it
                multiplies the loss by; it raises when that is below `_LEAST_SCALE`.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        scaler = self.accelerator.scaler
        if math.isfinite(float(norm)) or (scaler is not None and scaler.get_scale() >= _LEAST_SCALE):
            return norm
        raise UserError(
            f"step {self.state.global_step + 1}: the norm of the gradient is {float(norm)}, though each loss is "
            "finite; stopped before the weights moved; lower the weights in loss, or the learning rates; "
            f"{checkpoints.kept(Path(str(self.args.output_dir)))}"
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """Fetch a step's micro-batches as the Trainer does, and count what all processes have of them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens = sum(len(batch["targets"]) for batch in batches)
        filled = sum(len(batch["rows"]) > 0 for batch in batches)
        own = torch.tensor([[tokens, filled, 0]], device=device)
        # Set apart, because torch.tensor would wait for each count on a GPU.
        own[0, 2] = sum(samples_with_images(batch, self._image_token_id) for batch in batches)
        trained: torch.Tensor
        trained, *self._in_step = self.accelerator.gather(own).sum(0).unbind()
        return batches, trained.clamp(min=1)

    # Logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the Trainer's log line.

        It also has the terms and N as in `StepMeans.line`, each weight in the last step, the temperature, and the last
        measurement of the gradients.
        """
        if "loss" in logs:
            logs |= self._means.line(self.accelerator)
            logs |= {f"{name}_weight": self._weights[name] for name in self.balances}
            if (term := self.accelerator.unwrap_model(self.model).sea_term) is not None:
                logs["sea_scale"] = float(whole(term.log_scale.detach()).exp().clamp(max=MAX_SCALE))
            logs |= self._measured
            self._measured = {}
        super().log(logs, start_time)

    # The gradients' norms

    def _due(self) -> bool:
        """Tell whether gradients are measured at this step, which is each `measure_every`-th one."""
        return (
            self._measures
            and len(self.balances) > 0
            and self.recipe.loss.lm > 0
            and self.state.global_step % self.recipe.loss.measure_every == 0
            and self.accelerator.unwrap_model(self.model).training
        )

    def _measure(self) -> None:
        """Add up the gradients of a step, and update the balances at its end.

        The sum runs over micro-batches and processes, so the way in which the step is cut into them does not matter.
        """
        if not self._due():
            return
        for name, gradient in self._recorder.gradients().items():
            self._gradients[name] = self._gradients[name] + gradient if name in self._gradients else gradient
        if not self.accelerator.sync_gradients:  # more micro-batches of this step follow
            return
        nothing = torch.zeros(self._recorder.size, device=self.args.device)
        lm, *terms = (
            float(self.accelerator.reduce(self._gradients.get(name, nothing), "mean").norm())
            for name in ("lm", *self.balances)
        )
        self._gradients = {}
        for (name, balance), norm in zip(self.balances.items(), terms, strict=True):
            if (ratio := balance.update(lm, norm)) is not None:
                self._measured |= {"grad_norm_lm": lm, f"grad_norm_{name}": norm, f"grad_ratio_{name}": ratio}

    # Parts, their learning rates, their order

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the Trainer's optimizer with a group for each learning rate, with and without weight decay."""
        if self.optimizer is None:
            chosen = cast("TrainedModel", self.model if model is None else model)
            decayed = {name for name in self.get_decay_parameter_names(chosen) if not name.endswith("log_scale")}
            groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
            for name, parameter in chosen.named_parameters():
                if parameter.requires_grad:
                    decay = self.args.weight_decay if name in decayed else 0.0
                    groups[learning_rate(chosen.part(name), name, self.recipe), decay].append(parameter)
            with border("training_arguments.optim", "set another, or other options of it", given=True):
                self.optimizer = self._optimizer_of(chosen, groups)
        return self.optimizer

    def _optimizer_of(
        self, model: TrainedModel, groups: Mapping[tuple[float, float], list[nn.Parameter]]
    ) -> torch.optim.Optimizer:
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, cast("Any", model))
        if not isinstance(kind, type) or options.keys() & {"params", "model", "optimizer_dict"}:
            raise UserError(
                f"training_arguments.optim: {OptimizerNames(self.args.optim).value} forms groups of its own, which "
                "know nothing of learning_rates; choose another, such as adamw_torch"
            )
        each = [{"params": each, "lr": rate, "weight_decay": decay} for (rate, decay), each in groups.items()]
        optimizer: torch.optim.Optimizer = kind(each, **options)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:  # noqa: ANN401 - as in Trainer
        """Create the Trainer's schedule after a check that it never rises above a peak rate."""
        if self.lr_scheduler is None:
            assert self.optimizer is not None
            # Copies, because some optimizers keep a rate as a tensor, which a schedule changes in place.
            peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
            check_schedule(self.args, peaks, num_training_steps)
            self.args.lr_scheduler_kwargs = schedule_options(self.args, peaks)
        return super().create_scheduler(num_training_steps, optimizer)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Create the Trainer's loader with a generator of its own.

        For its workers' seeds a loader draws from the global generator each epoch, but only once if its workers are
        persistent. A resumed run would make those at another time, and so have other dropout. `EpochSampler` draws in
        place of the loader, each epoch.
        """
        loader: Any = super().get_train_dataloader()
        loader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return cast("DataLoader[Any]", loader)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:  # noqa: ANN401 - as in Trainer
        grouped, processes = {}, self.args.world_size
        together = self.args.train_batch_size * processes
        if self.recipe.data.sampling == "modality_length":
            rows = self.data.rows.with_format("arrow")
            grouped = {
                "lengths": rows["length"][:].to_numpy(),
                "has_image": pc.list_value_length(rows["images"][:]).to_numpy() > 0,
                "batch_size": together * self.args.gradient_accumulation_steps,
                "micro_batches": processes * self.args.gradient_accumulation_steps,
            }
        drop = self.args.train_batch_size if self.args.dataloader_drop_last else 1
        multiple = together if processes > 1 else 1
        self._sampler = EpochSampler(len(self.data), self.args.seed, multiple=multiple, drop=drop, **grouped)
        return self._sampler

    # Evaluation and checkpoints

    def evaluate(self, *_: Any, advance: Advance = lambda _: None, **__: Any) -> dict[str, float]:  # noqa: ANN401 - as in Trainer
        """Measure our metrics on the held-out samples, and log them as `eval_NAME`.

        `advance` is called with the number of samples of each batch.
        """
        assert self._evaluator is not None
        with self.accelerator.autocast():  # the Trainer's own autocast covers its forward only
            found = self._evaluator(self.accelerator.unwrap_model(self.model), advance)
        metrics = {f"eval_{name}": value for name, value in found.items()}
        followed = self.args.metric_for_best_model
        if followed and followed.removeprefix("eval_") not in found:
            raise UserError(
                f"training_arguments.metric_for_best_model: found {followed!r}; expected one of {', '.join(found)}"
            )
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _run_epoch(self, model: Any, epoch: int, *given: Any, **named: Any) -> None:  # noqa: ANN401 - as in Trainer
        """Run an epoch, unless the last step is done.

        The Trainer would run one more epoch when it resumes from the last checkpoint. Within an epoch it resumes behind
        accelerate's skipping sampler, which does not pass the epoch on if several processes share the batches.
        """
        self.control.should_training_stop = self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            assert self._sampler is not None
            self._sampler.set_epoch(epoch)
            super()._run_epoch(model, epoch, *given, **named)


def learning_rate(part: str, name: str, recipe: Recipe) -> float:
    """Return the peak rate of a trained parameter, by its part of the model and its name."""
    rates = recipe.learning_rates
    rate = rates.by_part()[part]
    if name.endswith("sea_term.log_scale"):
        rate = rates.logit_scale or rate
    assert rate is not None, f"{name} trains, but has no rate"
    return rate

"""Add the terms of an attached model to transformers' Trainer, and to TRL's SFTTrainer."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import recursively_apply
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from sea_pipeline.core.errors import UserError
from trainer.attach.attached import Attached
from trainer.attach.collator import IDS, CarryIds
from trainer.attach.step_means import StepMeans, samples_with_images
from trainer.model.fsdp import keep_embeddings_whole

if TYPE_CHECKING:
    from trainer.attach.looking import Measurement

    _Base = Trainer
else:
    _Base = object


class AttachMixin(_Base):
    """Add the terms to a trainer, as in `class MyTrainer(AttachMixin, SFTTrainer)`, made with `attached=`.

    The rows of the data need a column `image_ids`, the names of their images in the labels, in order. The mixin adds to
    the trainer: the weighted terms in the loss of a training step; an AdamW for the temperature at the trainer's
    learning rate, with its state in trainer_state.json; `loss_sea`, `loss_das`, `loss_sds`, `sea_pairs` and `sea_scale`
    in logs; the metrics of `Attached.metrics` in an evaluation.

    Args:
        attached: the result of `attach` on the trainer's model.

    Raises:
        UserError: the trainer is another of TRL's, has several GPUs in one process, or offloads activations that BASIC
            needs.
    """

    def __init_subclass__(cls, **named: Any) -> None:  # noqa: ANN401 - as in any class
        """Refuse a class in which transformers' Trainer comes first, because it would hide the mixin's methods."""
        super().__init_subclass__(**named)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(AttachMixin):
            bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not AttachMixin)
            raise UserError(
                f"AttachMixin: expected it in front of the trainer; found it after it in the bases of {cls.__name__}; "
                f"write class {cls.__name__}(AttachMixin, {bases})"
            )

    def __init__(self, *given: Any, attached: Attached, **named: Any) -> None:  # noqa: ANN401 - the trainer's
        _check_trainer(type(self))
        self.attached = attached
        self._ids: Any = ()
        self._means = StepMeans(attached.logged)
        self._has_basic = bool(attached.weights.keys() - {"sea"})
        self._with_images: int | None = None
        """Number of the step's samples over all processes that have images, if BASIC is on."""
        offloads = any(getattr(one, "activation_offloading", False) for one in (*given, *named.values()))
        if offloads and self._has_basic:  # TRL's setting
            raise UserError(
                "AttachMixin: das and sds need gradients before the backward, which activation_offloading does not "
                "allow; set activation_offloading=False"
            )
        super().__init__(*given, **named)
        if self.args.n_gpu > 1:
            raise UserError(
                f"AttachMixin: expected one GPU for a process; found {self.args.n_gpu}, which the Trainer would drive "
                "with nn.DataParallel; start it with torchrun, or set CUDA_VISIBLE_DEVICES to one"
            )
        self.add_callback(_Temperature(attached))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401 - as in Trainer
        """Compute the trainer's loss plus, in training, the weighted terms.

        L_a is a mean over micro-batches and processes, BASIC's terms over samples with images.
        """
        compute = partial(super().compute_loss, model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        if not model.training:
            return compute()
        with self.attached.watch.first_forward():
            found: Any = compute()
        loss, *outputs = found if return_outputs else (found,)
        self.attached.step = self.state.global_step
        self.attached.loss(self._ids)
        samples = self._samples_with_images(inputs) if self._has_basic else 0  # which waits for a GPU
        steps = self.current_gradient_accumulation_steps
        of_basic = 1 / steps
        if self._with_images:  # gradients are averaged over processes, so the share is multiplied by their number
            of_basic = samples * self.accelerator.num_processes / self._with_images
        # The Trainer sums micro-batches if its loss is scaled already, and divides by their number if not.
        factor = 1 if self._is_scaled(num_items_in_batch) else steps
        values: dict[str, Any] = {"sea_pairs": self.attached.pairs} if "sea" in self.attached.terms else {}
        for name, value in self.attached.terms.items():
            share = 1 / steps if name == "sea" else of_basic
            loss = loss + self.attached.weights[name] * share * factor * value.to(loss.device)
            values[f"loss_{name}"] = share * value.detach()
        self._means.add(values, len(self.attached.last_ids), ends_step=self.accelerator.sync_gradients)
        return (loss, *outputs) if return_outputs else loss

    def _is_scaled(self, items: Any) -> bool:  # noqa: ANN401 - the Trainer's
        """Tell whether the trainer's loss is already divided by the number of micro-batches in a step.

        This is the Trainer's own rule.
        """
        if self.loss_is_scaled_for_ga is not None:
            return bool(self.loss_is_scaled_for_ga)
        return (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None

    def get_batch_samples(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - as in Trainer
        """Fetch a step's micro-batches as the trainer does, and count all processes' samples with images."""
        batches, items = super().get_batch_samples(*given, **named)
        if self._has_basic:
            own = torch.tensor(sum(map(self._samples_with_images, batches)), device=self.args.device)
            self._with_images = int(self.accelerator.reduce(own, "sum"))
        return batches, items

    def _samples_with_images(self, batch: Mapping[str, Any]) -> int:
        return int(samples_with_images(batch, self.attached.watch.parts.inner.config.image_token_id))

    def _load_callback_state(self) -> None:
        """Restore callbacks as the Trainer does, but keep the temperature's, which a state alone cannot make."""
        ours = [callback for callback in self.callback_handler.callbacks if isinstance(callback, _Temperature)]
        super()._load_callback_state()
        others = [callback for callback in self.callback_handler.callbacks if not isinstance(callback, _Temperature)]
        self.callback_handler.callbacks = others + ours

    def evaluation_loop(
        self,
        dataloader: Any,  # noqa: ANN401 - as in Trainer
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:  # noqa: ANN401 - as in Trainer
        """Compute the trainer's metrics and, unless it predicts, those of `Attached.metrics`, in one pass."""
        from trainer.attach.looking import Measurement  # imported here because training does not need it

        given = (description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if description == "Prediction":  # the Trainer's own way to tell
            return super().evaluation_loop(dataloader, *given)
        if self.attached.is_detached:
            warnings.warn(
                f"AttachMixin: detach() was called; {metric_key_prefix}_* has the trainer's metrics alone", stacklevel=2
            )
            return super().evaluation_loop(dataloader, *given)
        measured = Measurement(self.attached)
        both: Any = _Passing(dataloader, partial(self._measure, measured))
        found = super().evaluation_loop(both, *given)
        both.finish()
        self.callback_handler.eval_dataloader = dataloader
        ours = measured.metrics()
        cast("Any", found.metrics).update({f"{metric_key_prefix}_{name}": value for name, value in ours.items()})
        return found

    def _measure(self, measured: "Measurement", batch: Any) -> None:  # noqa: ANN401 - the trainer's
        """Measure a batch by its names, and leave out rows that a process has measured before.

        accelerate fills up the last batches of all processes with rows from the start.
        """
        from trainer.attach.looking import COUNTED  # imported here because training does not need it

        state, own = self.accelerator.gradient_state, self.accelerator.process_index
        given = self._prepare_inputs(batch)
        count = len(given["input_ids"])
        filled = self.accelerator.num_processes > 1 and self.accelerator.even_batches
        if filled and state.end_of_dataloader and state.remainder > 0:
            count = min(count, max(0, state.remainder - own * count))
        with self.accelerator.autocast():
            measured.add({**given, IDS: self._ids, COUNTED: count})

    # Names in rows and batches

    @property
    def data_collator(self) -> Any:  # noqa: ANN401 - the trainer's own, as others see it
        """Return the trainer's collator, which carries names; a trainer's own loaders take it, too."""
        return self._collator

    @data_collator.setter
    def data_collator(self, own: Any) -> None:  # noqa: ANN401 - any callable
        self._collator = own if type(own) is CarryIds else CarryIds(own, "sea" in self.attached.weights)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = cast("list[str]", self._signature_columns)
        if IDS not in columns:
            columns.append(IDS)

    def _prepare_inputs(self, inputs: Any) -> Any:  # noqa: ANN401 - as in Trainer
        self._ids = ()  # of another batch
        if IDS in inputs:
            self._ids = inputs[IDS]
            inputs = {name: value for name, value in inputs.items() if name != IDS}
        return super()._prepare_inputs(inputs)

    # Logging

    def log(self, logs: dict[str, float], *given: Any, **named: Any) -> None:  # noqa: ANN401 - as in Trainer
        """Write the trainer's log line with the terms, see `StepMeans.line`."""
        if "loss" in logs:
            logs |= self._means.line(self.accelerator)
            if "sea" in self.attached.weights:
                logs["sea_scale"] = self.attached.scale
        super().log(logs, *given, **named)


def _check_trainer(kind: type) -> None:
    """Refuse TRL's trainers other than SFTTrainer.

    They may run a batch's images twice, or first without gradients.
    """
    of_trl = [base.__name__ for base in kind.__mro__ if base.__module__.split(".")[0] == "trl"]
    public = [name for name in of_trl if not name.startswith("_")]
    if public and public[0] != "SFTTrainer":
        raise UserError(
            f"AttachMixin: expected transformers' Trainer or TRL's SFTTrainer; found TRL's {public[0]}, which may run "
            "a batch's images twice or without gradients; use one of those, or a loop of your own"
        )


class _Passing:
    """A loader whose first pass is measured, too, each batch when the trainer is done with it."""

    def __init__(self, loader: Any, measure: Callable[[Any], None]) -> None:  # noqa: ANN401 - the trainer's
        self._loader, self._measure = loader, measure
        self._begun = False
        self._left: Any = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the loader's
        return getattr(self.__dict__["_loader"], name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        is_first, self._begun = not self._begun, True
        for batch in self._loader:
            if is_first:
                self._left = recursively_apply(torch.clone, dict(batch))  # a trainer may change its own
            yield batch
            self.finish()

    def finish(self) -> None:
        """Measure the last batch of a pass, whether or not another one is asked for."""
        own, self._left = self._left, None
        if own is not None:
            self._measure(own)


class _Temperature(TrainerCallback, ExportableState):
    """Train the temperature with an optimizer of its own.

    With FSDP the trainer's optimizer may hold the model's parameters alone.
    """

    def __init__(self, attached: Attached | None = None) -> None:  # None: transformers' own way to restore it
        self._attached = cast("Attached", attached)
        parameters = [] if attached is None else attached.parameters()
        self._optimizer = torch.optim.AdamW(parameters, weight_decay=0.0) if parameters else None
        self._loss_scale = 1.0

    def state(self) -> dict[str, Any]:
        """Return what trainer_state.json keeps."""
        if self._optimizer is None:
            return {"args": {}, "attributes": {}}
        (parameter,) = self._attached.parameters()
        moments = self._optimizer.state.get(parameter, {})
        kept = {name: float(value) for name, value in moments.items()}
        return {"args": {}, "attributes": {"log_scale": self._attached.state_dict()["log_scale"], **kept}}

    def on_train_begin(self, args: Any, state: Any, *_: Any, model: Any = None, **__: Any) -> None:  # noqa: ANN401
        keep_embeddings_whole(model)
        kept = state.stateful_callbacks.get(type(self).__name__)
        kept = kept[0] if isinstance(kept, list) else kept
        values = (kept or {}).get("attributes", {})
        if self._optimizer is None or "log_scale" not in values or not state.global_step:
            return
        (parameter,) = self._attached.parameters()
        assert self._attached.words is not None
        self._attached.words.to(args.device)  # before the state, which is made where the parameter is
        self._attached.load_state_dict({"step": state.global_step, "log_scale": values["log_scale"]})
        self._optimizer.state[parameter] = {
            name: torch.tensor(values[name]) if name == "step" else torch.full_like(parameter, values[name])
            for name in ("step", "exp_avg", "exp_avg_sq")
            if name in values
        }

    def on_pre_optimizer_step(self, *_: Any, optimizer: Any = None, **__: Any) -> None:  # noqa: ANN401
        if self._optimizer is None:
            return
        self._attached.average_gradients()
        (parameter,) = self._attached.parameters()
        self._loss_scale = _loss_scale(optimizer)
        if parameter.grad is not None:
            parameter.grad /= self._loss_scale

    def on_optimizer_step(self, *_: Any, optimizer: Any = None, lr_scheduler: Any = None, **__: Any) -> None:  # noqa: ANN401
        if self._optimizer is None:
            return
        (parameter,) = self._attached.parameters()
        skipped = _loss_scale(optimizer) < self._loss_scale  # step_was_skipped is never True with a fused AdamW
        if parameter.grad is not None and torch.isfinite(parameter.grad).all() and not skipped:
            self._optimizer.param_groups[0]["lr"] = lr_scheduler.get_last_lr()[0]
            self._optimizer.step()
        parameter.grad = None


def _loss_scale(optimizer: Any) -> float:  # noqa: ANN401 - accelerate's
    """Return what fp16's scaler multiplies the loss by, which falls if it skips a step; 1 without a scaler."""
    scaler = getattr(optimizer, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())

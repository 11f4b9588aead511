"""Measure the terms' gradient norms on the projector, and set a term's weight from them if it is `auto`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from trainer.model.fsdp import whole

_KEEP = 0.9
"""Weight of the old value in the running means."""


class Balance(nn.Module):
    """Hold the weight of a term next to L_lm.

    With `auto` the weight keeps |weight * grad L_term| / |grad L_lm| at `ratio`. The gradients are those w.r.t. the
    projector's parameters, of a whole step, with no weight applied. The measurements are part of a checkpoint, so that
    a resumed run goes on with the same weight.

    Args:
        weight: a number, or `auto`, which is 1 until the first measurement.
        ratio: the value at which `auto` keeps the ratio of gradient norms.
    """

    weight: torch.Tensor
    lm_norm: torch.Tensor
    term_norm: torch.Tensor

    def __init__(self, weight: float | str, ratio: float) -> None:
        super().__init__()
        self.auto = weight == "auto"
        self.target = ratio
        for name, value in (("weight", 1.0 if self.auto else float(weight)), ("lm_norm", 0.0), ("term_norm", 0.0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def update(self, lm_norm: float, term_norm: float) -> float | None:
        """Record a measurement, and move the weight if it is `auto`.

        Returns |weight * grad L_term| / |grad L_lm|, or None if either norm is 0 or not finite. Such a measurement is
        ignored.
        """
        if not (0 < lm_norm < float("inf") and 0 < term_norm < float("inf")):
            return None
        for mean, new in ((self.lm_norm, lm_norm), (self.term_norm, term_norm)):
            # A mean of 0 has not been measured yet; the first measurement is taken as it is.
            mean.copy_(_KEEP * mean + (1 - _KEEP) * new if mean > 0 else torch.tensor(new))
        if self.auto:
            # weight * |grad L_term| = target * |grad L_lm|, solved for the weight with the running means.
            self.weight.copy_(self.target * self.lm_norm / self.term_norm)
        return float(self.weight) * term_norm / lm_norm


class GradientRecorder:
    """Remember what a forward and backward pass show of the projector, for `gradients`."""

    def __init__(self, projector: nn.Module) -> None:
        self._projector = projector
        self._features: torch.Tensor | None = None
        self._gradients: dict[str, torch.Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Remember the projector's input within this block."""

        def remember(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._features = inputs[0].detach()

        handle = self._projector.register_forward_pre_hook(remember)
        try:
            yield
        finally:
            handle.remove()

    def follow(self, name: str, visual: torch.Tensor | None, scale: float) -> None:
        """Record the gradient w.r.t. V, divided by `scale`, when the backward pass reaches it.

        Nothing is recorded if `visual` is None.
        """

        def keep(gradient: torch.Tensor) -> None:
            self._gradients[name] = gradient.detach() / scale

        if visual is not None:
            visual.register_hook(keep)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Compute the gradient of each term w.r.t. the projector's parameters, (`size`,).

        It takes one more forward of the projector alone: dL/dV is carried on by the chain rule.
        """
        weights = {name: whole(value.detach()) for name, value in self._projector.named_parameters()}
        features, gradients = self._features, self._gradients
        self._features, self._gradients = None, {}
        parameters = [weights[name].requires_grad_() for name in self._trained()]
        if features is None or not gradients or not parameters:
            return {}
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            visual = functional_call(self._projector, weights, (features.to(parameters[0].dtype),))
            found = {}
            # Chain rule: dL/dW = (dL/dV) (dV/dW), for each term with its own dL/dV.
            for name, gradient in gradients.items():
                by_parameter = torch.autograd.grad(
                    visual, parameters, gradient.view_as(visual).to(visual.dtype), retain_graph=True
                )
                found[name] = torch.cat([part.flatten() for part in by_parameter])
        return found

    @property
    def size(self) -> int:
        """Count the values of a gradient."""
        trained = self._trained()
        return sum(value.numel() for name, value in self._projector.named_parameters() if name in trained)

    def _trained(self) -> list[str]:
        return [name for name, value in self._projector.named_parameters() if value.requires_grad]

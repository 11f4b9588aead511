"""Gradient norms of the terms on the projector: measured, logged, and with `auto` what sets a term's weight."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from trainer.model.fsdp import whole

_KEEP = 0.9
"""Of the running means, at each measurement."""


class Balance(nn.Module):
    """The weight of a term beside L_lm; with `auto` it holds |weight * grad L_term| / |grad L_lm| at a stated value.

    The gradients are those by the projector's parameters, of a whole step, with no weight applied. What it has
    measured is part of a checkpoint, so that a resumed run goes on with the same weight.

    Args:
        weight: a number, or `auto`: 1 until the first measurement.
        ratio: what `auto` holds.
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
        """Takes a measurement, moves the weight where it is `auto`, and gives |weight * grad L_term| / |grad L_lm|.

        A measurement in which either norm is 0 or not finite says nothing: None.
        """
        if not (0 < lm_norm < float("inf") and 0 < term_norm < float("inf")):
            return None
        for mean, new in ((self.lm_norm, lm_norm), (self.term_norm, term_norm)):
            mean.copy_(_KEEP * mean + (1 - _KEEP) * new if mean > 0 else torch.tensor(new))
        if self.auto:
            self.weight.copy_(self.target * self.lm_norm / self.term_norm)
        return float(self.weight) * term_norm / lm_norm


class Probe:
    """Remembers what one forward and backward pass show of the projector, for `gradients`."""

    def __init__(self, projector: nn.Module) -> None:
        self._projector = projector
        self._features: torch.Tensor | None = None
        self._gradients: dict[str, torch.Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Remembers what enters the projector inside this block."""

        def remember(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._features = inputs[0].detach()

        handle = self._projector.register_forward_pre_hook(remember)
        try:
            yield
        finally:
            handle.remove()

    def follow(self, name: str, visual: torch.Tensor | None, scale: float) -> None:
        """Takes the gradient by V when the backward pass reaches it, divided by `scale`; None: there is no V."""

        def keep(gradient: torch.Tensor) -> None:
            self._gradients[name] = gradient.detach() / scale

        if visual is not None:
            visual.register_hook(keep)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Each gradient on the projector's parameters, (`size`,): one more forward of the projector alone."""
        weights = {name: whole(value.detach()) for name, value in self._projector.named_parameters()}
        features, gradients = self._features, self._gradients
        self._features, self._gradients = None, {}
        parameters = [weights[name].requires_grad_() for name in self._trained()]
        if features is None or not gradients or not parameters:
            return {}
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            visual = functional_call(self._projector, weights, (features.to(parameters[0].dtype),))
            found = {}
            for name, gradient in gradients.items():
                by_parameter = torch.autograd.grad(
                    visual, parameters, gradient.view_as(visual).to(visual.dtype), retain_graph=True
                )
                found[name] = torch.cat([part.flatten() for part in by_parameter])
        return found

    @property
    def size(self) -> int:
        """How many values a gradient has."""
        trained = self._trained()
        return sum(value.numel() for name, value in self._projector.named_parameters() if name in trained)

    def _trained(self) -> list[str]:
        return [name for name, value in self._projector.named_parameters() if value.requires_grad]

"""Linear maps from an LLM's hidden states to its input embeddings: ours, not BASIC's; see `recipe.Basic.lens`.

Shapes: T tokens of text, k layers, d the LLM's width. E, (T, d), are the embeddings of the tokens themselves. H_i,
(T, d), are the LLM's i-th hidden states of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

LensKind = Literal["none", "ridge", "centred", "shuffled"]
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The candidates for a / (T * mean variance of H_i)."""


class Affine(NamedTuple):
    """The map h -> (h - mean) @ weight + target, in float64 as it is fitted.

    Without a weight it is h -> h - mean + target.
    """

    mean: torch.Tensor
    """(d,), of H."""
    weight: torch.Tensor | None
    """(d, d), or None."""
    target: torch.Tensor
    """(d,), the mean of E."""

    def to(self, like: torch.Tensor) -> "Affine":
        """Move the map to the device and dtype of another tensor."""
        weight = None if self.weight is None else self.weight.to(like)
        return Affine(self.mean.to(like), weight, self.target.to(like))


@dataclass(frozen=True, eq=False)
class Lens:
    """The maps of layers 1 to k."""

    maps: tuple[Affine, ...]
    _moved: dict[tuple[int, torch.device, torch.dtype], Affine] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, number: int, states: torch.Tensor) -> torch.Tensor:
        """Map states, (T, d), of the layer `number`, from 0.

        The result has the dtype of the states, and autocast does not change it.
        """
        key = number, states.device, states.dtype
        if key not in self._moved:
            self._moved[key] = self.maps[number].to(states)
        mean, weight, target = self._moved[key]
        with torch.autocast(states.device.type, enabled=False):
            centred = states - mean  # (h - mean) @ W + target
            return (centred if weight is None else centred @ weight) + target


def fit(
    states: torch.Tensor, embeddings: torch.Tensor, kind: LensKind, *, held_out: int, penalties: Sequence[float]
) -> Affine:
    """Fit the map of one layer, exactly and in float64.

    `ridge` is W = argmin |(H - mean H) W - (E - mean E)|^2 + a |W|^2, with the a that does best on held-out tokens.
    `shuffled` is the same with the same a, but with E in another order. It shows what shrinking alone does, without
    knowing a token. `centred` moves the mean of H to that of E.

    Args:
        states: H, (T, d).
        embeddings: E, (T, d).
        kind: which of the maps.
        held_out: how many of the last tokens choose a and are left out of the fit.
        penalties: the candidates for a / (T * mean variance of H).
    """
    fitted = len(states) - held_out
    wide = torch.float64
    inputs, outputs = states[:fitted].to(wide), embeddings[:fitted].to(wide)
    mean, target = inputs.mean(0), outputs.mean(0)
    if kind == "centred":
        return Affine(mean, None, target)
    inputs = inputs - mean
    # Normal equations of ridge regression: (H'H + a I) W = H'E, with H and E centred.
    gram, product = inputs.T @ inputs, inputs.T @ (outputs - target)
    others, wanted = states[fitted:].to(wide) - mean, embeddings[fitted:].to(wide) - target
    # The mean diagonal of H'H is T * mean variance of H: it makes the penalties independent of the states' size.
    scale = gram.diagonal().mean().clamp_min(torch.finfo(wide).tiny)
    solved = {share: _solved(gram, product, share * scale) for share in penalties}
    # The least squared error on the held-out tokens, which neither H'H nor H'E has seen
    best = min(solved, key=lambda share: float((others @ solved[share] - wanted).square().sum()))
    if kind == "ridge":
        return Affine(mean, solved[best], target)
    # `shuffled`: each state is paired with the embedding of another token; H'H and the penalty stay.
    order = torch.randperm(fitted, generator=torch.Generator().manual_seed(0)).to(outputs.device)
    return Affine(mean, _solved(gram, inputs.T @ (outputs - target)[order], best * scale), target)


def _solved(gram: torch.Tensor, product: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.linalg.solve(gram + penalty * torch.eye(len(gram)).to(gram), product)
    return found


def save_lens(lens: Lens, path: Path) -> None:
    """Write a lens as a NumPy archive in float32.

    The archive has checksums, which are checked when it is read.
    """
    arrays: dict[str, Any] = {}
    for name in Affine._fields:
        parts = [getattr(one, name) for one in lens.maps]
        if all(part is not None for part in parts):
            arrays[name] = torch.stack(parts).float().cpu().numpy()
    with path.open("wb") as file:
        np.savez(file, **arrays)


def load_lens(path: Path, layers: int, width: int) -> Lens | None:
    """Read a lens.

    Returns:
        The lens; None if the file is missing, damaged, or of another size.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
        weights = arrays.get("weight", [None] * layers)
        shapes = {tuple(arrays[name].shape) for name in ("mean", "target")}
        whole = all(torch.isfinite(one).all() for one in arrays.values())
        if shapes != {(layers, width)} or not whole or len(weights) != layers:
            return None
        return Lens(tuple(Affine(*one) for one in zip(arrays["mean"], weights, arrays["target"], strict=True)))
    except Exception:  # a damaged zip file raises nearly anything
        return None

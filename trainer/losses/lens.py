"""Linear maps from an LLM's hidden states to its input embeddings: ours, not BASIC's; see `recipe.Basic.lens`.

Shapes: T tokens of text, k layers, d the LLM's width. E is (T, d), the embeddings of the tokens themselves, H_i (T, d)
what the LLM's i-th layer makes of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

LensKind = Literal["none", "ridge", "centred", "shuffled"]
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of which a / (T * mean variance of H_i) is chosen."""


class Affine(NamedTuple):
    """h -> (h - mean) @ weight + target, float64 as it is fitted; without a weight h -> h - mean + target."""

    mean: torch.Tensor
    """(d,), of H."""
    weight: torch.Tensor | None
    """(d, d), or None."""
    target: torch.Tensor
    """(d,), the mean of E."""

    def to(self, like: torch.Tensor) -> "Affine":
        """The map where another tensor is, in its dtype."""
        weight = None if self.weight is None else self.weight.to(like)
        return Affine(self.mean.to(like), weight, self.target.to(like))


@dataclass(frozen=True, eq=False)
class Lens:
    """The maps of layers 1 to k."""

    maps: tuple[Affine, ...]
    _moved: dict[tuple[int, torch.device, torch.dtype], Affine] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, number: int, states: torch.Tensor) -> torch.Tensor:
        """Maps states of the layer `number`, from 0, (T, d), in their dtype; autocast does not reach it."""
        key = number, states.device, states.dtype
        if key not in self._moved:
            self._moved[key] = self.maps[number].to(states)
        mean, weight, target = self._moved[key]
        with torch.autocast(states.device.type, enabled=False):
            centred = states - mean
            return (centred if weight is None else centred @ weight) + target


def fit(
    states: torch.Tensor, embeddings: torch.Tensor, kind: LensKind, *, held_out: int, penalties: Sequence[float]
) -> Affine:
    """Fits one layer's map, exactly and in float64.

    `ridge` is W = argmin |(H - mean H) W - (E - mean E)|^2 + a |W|^2, with the a that does best on tokens held out.
    `shuffled` is the same with the same a, but E in another order: what shrinking alone does, without knowing a token.
    `centred` moves the mean of H to that of E.

    Args:
        states: H, (T, d).
        embeddings: E, (T, d).
        kind: which.
        held_out: how many of the last tokens choose a, and are not fitted to.
        penalties: a / (T * mean variance of H), of which one is chosen.
    """
    fitted = len(states) - held_out
    wide = torch.float64
    inputs, outputs = states[:fitted].to(wide), embeddings[:fitted].to(wide)
    mean, target = inputs.mean(0), outputs.mean(0)
    if kind == "centred":
        return Affine(mean, None, target)
    inputs = inputs - mean
    gram, product = inputs.T @ inputs, inputs.T @ (outputs - target)
    others, wanted = states[fitted:].to(wide) - mean, embeddings[fitted:].to(wide) - target
    scale = gram.diagonal().mean().clamp_min(torch.finfo(wide).tiny)
    solved = {share: _solved(gram, product, share * scale) for share in penalties}
    best = min(solved, key=lambda share: float((others @ solved[share] - wanted).square().sum()))
    if kind == "ridge":
        return Affine(mean, solved[best], target)
    order = torch.randperm(fitted, generator=torch.Generator().manual_seed(0)).to(outputs.device)
    return Affine(mean, _solved(gram, inputs.T @ (outputs - target)[order], best * scale), target)


def _solved(gram: torch.Tensor, product: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.linalg.solve(gram + penalty * torch.eye(len(gram)).to(gram), product)
    return found


def save_lens(lens: Lens, path: Path) -> None:
    """Writes a lens as a NumPy archive, float32: its checksums are looked at where it is read."""
    arrays: dict[str, Any] = {}
    for name in Affine._fields:
        parts = [getattr(one, name) for one in lens.maps]
        if all(part is not None for part in parts):
            arrays[name] = torch.stack(parts).float().cpu().numpy()
    with path.open("wb") as file:
        np.savez(file, **arrays)


def load_lens(path: Path, layers: int, width: int) -> Lens | None:
    """Reads a lens; None if there is none of that size, or it is damaged in one of the many ways of zip files."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
        weights = arrays.get("weight", [None] * layers)
        shapes = {tuple(arrays[name].shape) for name in ("mean", "target")}
        whole = all(torch.isfinite(one).all() for one in arrays.values())
        if shapes != {(layers, width)} or not whole or len(weights) != layers:
            return None
        return Lens(tuple(Affine(*one) for one in zip(arrays["mean"], weights, arrays["target"], strict=True)))
    except Exception:
        return None

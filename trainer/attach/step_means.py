"""Count a step's samples with images, and log its terms, for both trainers."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

_OF_PAIRS = ("loss_sea", "sea_pairs")


def samples_with_images(batch: Mapping[str, Any], image_token_id: int) -> torch.Tensor | int:
    """Count the samples of a batch that have image tokens which a mask (B, L) does not hide, as a scalar.

    Reading it waits for a GPU.
    """
    if "input_ids" not in batch:
        return 0
    found: torch.Tensor = batch["input_ids"] == image_token_id
    mask = batch.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.shape == found.shape:
        found = found & mask.bool()
    return found.any(1).sum()


class StepMeans:
    """Collect values of micro-batches, and compute their means over the steps of a log line.

    Args:
        names: of the values. Those that begin with `loss_` are shares of a step's loss, others means by themselves.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._values: dict[str, list[float | torch.Tensor]] = {name: [] for name in names}
        self._images: float | torch.Tensor = 0
        self._steps = 0

    def add(self, values: Mapping[str, float | torch.Tensor], images: float | torch.Tensor, *, ends_step: bool) -> None:
        """Add a micro-batch's values.

        Args:
            values: by name; a micro-batch may lack some.
            images: number of its images, or of its samples with images; only whether it is 0 counts.
            ends_step: whether it is the step's last micro-batch.
        """
        self._steps += ends_step
        self._images = self._images + images
        for name in self._values.keys() & values.keys():
            self._values[name].append(values[name])

    def line(self, accelerator: Any) -> dict[str, float]:  # noqa: ANN401 - accelerate's, which has no types
        """Compute the means over the steps and processes since the last call.

        A term is a mean over the steps; a step without it counts as 0. What no micro-batch has is left out, such as an
        L_a without pairs. `sea_pairs` is a mean over the micro-batches that have any; if there were images, it is 0
        where none has.
        """
        drawn = sum(float(pairs) > 0 for pairs in self._values.get("sea_pairs", ()))
        own = [
            (float(sum(values)), drawn if name in _OF_PAIRS else len(values)) for name, values in self._values.items()
        ]
        given = torch.tensor([*own, (float(self._images), 0)], device=accelerator.device)
        *totals, (images, _) = accelerator.reduce(given, "sum").tolist()
        steps = max(1, self._steps) * accelerator.num_processes
        means = {
            name: total / (steps if name.startswith("loss_") else count)
            for name, (total, count) in zip(self._values, totals, strict=True)
            if count
        }
        if "sea_pairs" in self._values and images:
            means.setdefault("sea_pairs", 0.0)
        self._values, self._images, self._steps = {name: [] for name in self._values}, 0, 0
        return means

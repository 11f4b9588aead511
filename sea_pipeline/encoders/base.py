"""What the pipeline asks of an encoder, and how images become its input.

Shapes: B images, P = rows * columns patches, W words, D embedding width, S input side in pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from sea_pipeline.crops import CropBox


class Pixels(NamedTuple):
    """An encoder's input from one image."""

    values: npt.NDArray[np.uint8]
    """(S, S, 3), RGB."""
    crop_box: CropBox


@dataclass(frozen=True)
class Preprocess:
    """Centre crop to a square, then bicubic to `size` x `size` pixels."""

    size: int

    def __call__(self, image: Image.Image) -> Pixels:
        """The encoder's input from an upright RGB image of any size. Runs in decoding threads."""
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        resized = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box)
        width, height = image.size
        return Pixels(
            np.asarray(resized),
            (left / width, top / height, (left + side) / width, (top + side) / height),
        )

    def fields(self) -> dict[str, Any]:
        """What decides the pixels, for the fingerprint."""
        return {"crop": "centre square", "resize": "bicubic", "size": self.size}


class Encoder(Protocol):
    """Image patches and words in one space (SEA Eq. 4 and 5).

    Constructing one is cheap; the first call of `patches` or `words` loads the weights.
    """

    grid: tuple[int, int]
    """(rows, columns) of patches."""
    width: int
    """D."""
    sign: int
    """+1 or -1: the similarity of a patch and a word is s = sign * cos (SEA Eq. 6 has -1 for CLIP)."""
    preprocess: Preprocess

    def fields(self) -> Mapping[str, Any]:
        """Everything that decides the embeddings, by name and as JSON: weights, layer, preprocessing, precision."""
        ...

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """V = f(X) (Eq. 4): uint8 (B, S, S, 3) to float32 (B, P, D), row-major patches of unit length."""
        ...

    def words(self, words: Sequence[str], advance: Callable[[int], None]) -> torch.Tensor:
        """T = h(W) (Eq. 5): float32 (W, D), unit length; `advance` is told how many words are done."""
        ...

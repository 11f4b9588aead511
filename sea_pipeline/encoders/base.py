"""What the pipeline asks of an encoder, and how images become its input.

Shapes: B images, P = rows * columns patches, W words, D embedding width, S input side in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Advance
from sea_pipeline.inputs.crops import WHOLE, CropBox

if TYPE_CHECKING:
    import torch

_UNIT = 1e-3
"""How far from 1 the length of a patch's vector may be."""


class Pixels(NamedTuple):
    """An encoder's input from one image."""

    values: npt.NDArray[np.uint8]
    """(S, S, 3), RGB."""
    crop_box: CropBox


@dataclass(frozen=True)
class Preprocess:
    """An image of any shape to `size` x `size` pixels."""

    size: int
    mode: Literal["shortest", "squash", "longest"] = "shortest"
    """The centre square; the whole image, squeezed; or the whole image with bars of grey level `fill` around it."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: int = 0

    def __call__(self, image: Image.Image) -> Pixels:
        """The encoder's input from an upright RGB image of any size. Runs in decoding threads."""
        resample = Image.Resampling[self.interpolation.upper()]
        width, height = image.size
        if self.mode == "squash":
            return Pixels(np.asarray(image.resize((self.size, self.size), resample)), WHOLE)
        if self.mode == "longest":
            ratio = max(width, height) / self.size
            inner = (max(1, round(width / ratio)), max(1, round(height / ratio)))
            left, top = (self.size - inner[0]) // 2, (self.size - inner[1]) // 2
            padded = Image.new("RGB", (self.size, self.size), (self.fill,) * 3)
            padded.paste(image.resize(inner, resample), (left, top))
            x0, y0 = -left / inner[0], -top / inner[1]
            return Pixels(np.asarray(padded), (x0, y0, x0 + self.size / inner[0], y0 + self.size / inner[1]))
        side = min(image.size)
        left, top = (width - side) // 2, (height - side) // 2
        resized = image.resize((self.size, self.size), resample, (left, top, left + side, top + side))
        return Pixels(
            np.asarray(resized),
            (left / width, top / height, (left + side) / width, (top + side) / height),
        )

    def fields(self) -> dict[str, Any]:
        """What decides the pixels, for the fingerprint."""
        crop = {"shortest": "centre square", "squash": "none", "longest": f"none, padded with {self.fill}"}
        return {"crop": crop[self.mode], "resize": self.interpolation, "size": self.size}


class Encoder(Protocol):
    """Image patches and words in one space (SEA Eq. 4 and 5).

    Constructing one is cheap; the first call of `load`, `patches` or `words` loads the weights.
    """

    spec: str
    """What `load_encoder` takes to make it again."""
    grid: tuple[int, int]
    """(rows, columns) of patches."""
    width: int
    """D."""
    sign: int
    """+1 or -1: the similarity of a patch and a word is s = sign * cos (SEA Eq. 6 has -1 for CLIP)."""
    preprocess: Preprocess
    device: str
    """Where it runs, and its vectors are; pixels may come from the CPU."""

    def fields(self) -> Mapping[str, Any]:
        """Everything that decides the embeddings, by name and as JSON: weights, layer, preprocessing, precision.

        Not where the weights lie: a file may move.
        """
        ...

    def word_fields(self) -> Mapping[str, Any]:
        """Everything that decides the embeddings of words, and nothing that decides those of patches alone."""
        ...

    def load(self) -> None:
        """Loads what `patches` needs; then several threads may call that at once."""
        ...

    def patches(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """V = f(X) (Eq. 4): uint8, or float32 in 0..255, (B, S, S, 3) to float32 (B, P, D).

        Patches are in row-major order and of unit length.
        """
        ...

    def words(self, words: Sequence[str], advance: Advance) -> "torch.Tensor":
        """T = h(W) (Eq. 5): float32 (W, D), unit length; `advance` is told how many words are done."""
        ...


def finite_images(encoder: Encoder, vectors: "torch.Tensor") -> list[bool]:
    """Of each image of a batch whether its patches' vectors are finite.

    Raises:
        UserError: they are other than `Encoder.patches` says: the encoder's fault, not an image's.
    """
    import torch  # here: what an encoder is called is checked before torch is loaded

    rows, columns = encoder.grid
    if vectors.dtype != torch.float32 or vectors.shape[1:] != (rows * columns, encoder.width):
        raise UserError(
            f"--encoder {encoder.spec}: expected float32 vectors of {rows * columns} patches, {rows} x {columns}, and "
            f"width {encoder.width}; found {vectors.dtype} and {tuple(vectors.shape[1:])}"
        )
    lengths = vectors.norm(dim=-1).cpu()  # once: each look at a GPU's numbers waits for them
    finite = lengths.isfinite()
    if (far := ((lengths - 1).abs() > _UNIT) & finite & (lengths > 0)).any():  # normalised, 0 stays 0
        raise UserError(f"--encoder {encoder.spec}: expected vectors of unit length; found {float(lengths[far][0]):g}")
    images: list[bool] = finite.all(-1).tolist()
    return images

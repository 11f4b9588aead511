"""Define what the pipeline needs of an encoder, and how images become its input.

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
from sea_pipeline.inputs.crops import FULL, WHOLE, CropBox, Reach, reached

if TYPE_CHECKING:
    import torch

_UNIT = 1e-3
"""The largest distance from 1 of the length of a patch's vector."""


class Pixels(NamedTuple):
    """An encoder's input made from one image."""

    values: npt.NDArray[np.uint8]
    """(S, S, 3), RGB."""
    crop_box: CropBox
    """The part of the image that the patches cover."""


@dataclass(frozen=True)
class Preprocess:
    """Turns an image of any shape into `size` x `size` pixels."""

    size: int
    mode: Literal["shortest", "squash", "longest"] = "shortest"
    """The centre square; the whole image, squashed; or the whole image, padded with grey level `fill`."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: int = 0
    reach: Reach = FULL

    def __call__(self, image: Image.Image) -> Pixels:
        """Make the encoder's input from an upright RGB image of any size.

        It runs in decoding threads.
        """
        values, box = self._shown(image)
        return Pixels(values, reached(box, self.reach))

    def _shown(self, image: Image.Image) -> tuple[npt.NDArray[np.uint8], CropBox]:
        resample = Image.Resampling[self.interpolation.upper()]
        width, height = image.size
        if self.mode == "squash":
            return np.asarray(image.resize((self.size, self.size), resample)), WHOLE
        if self.mode == "longest":
            ratio = max(width, height) / self.size
            inner = (max(1, round(width / ratio)), max(1, round(height / ratio)))
            left, top = (self.size - inner[0]) // 2, (self.size - inner[1]) // 2
            padded = Image.new("RGB", (self.size, self.size), (self.fill,) * 3)
            padded.paste(image.resize(inner, resample), (left, top))
            x0, y0 = -left / inner[0], -top / inner[1]
            return np.asarray(padded), (x0, y0, x0 + self.size / inner[0], y0 + self.size / inner[1])
        side = min(image.size)
        left, top = (width - side) // 2, (height - side) // 2
        resized = image.resize((self.size, self.size), resample, (left, top, left + side, top + side))
        return np.asarray(resized), (left / width, top / height, (left + side) / width, (top + side) / height)

    def fields(self) -> dict[str, Any]:
        """Return the settings that decide the pixels and their box, for the fingerprint."""
        crop = {"shortest": "centre square", "squash": "none", "longest": f"none, padded with {self.fill}"}
        reach = {} if self.reach == FULL else {"reach": list(self.reach)}
        return {"crop": crop[self.mode], "resize": self.interpolation, "size": self.size} | reach


class Encoder(Protocol):
    """Embeds image patches and words in one space (SEA Eq. 4 and 5).

    Constructing one is cheap; the first call of `load`, `patches` or `words` loads the weights.
    """

    spec: str
    """The text from which `load_encoder` makes it again."""
    grid: tuple[int, int]
    """(rows, columns) of patches."""
    width: int
    """D, the embedding width."""
    sign: int
    """+1 or -1; the similarity of a patch and a word is s = sign * cos (SEA Eq. 6 has -1 for CLIP)."""
    preprocess: Preprocess
    device: str
    """The device that it runs on and that holds its vectors; pixels may be on the CPU."""

    def fields(self) -> Mapping[str, Any]:
        """Return everything that decides the embeddings, as JSON by name.

        That is weights, layer, preprocessing and precision, and not the path of the weights, because a file may move.
        """
        ...

    def word_fields(self) -> Mapping[str, Any]:
        """Return everything that decides the embeddings of words, and nothing that only decides those of patches."""
        ...

    def load(self) -> None:
        """Load what `patches` needs, after which several threads may call `patches` at once."""
        ...

    def patches(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Embed the patches of images, V = f(X) (SEA Eq. 4).

        Args:
            pixels: (B, S, S, 3), uint8, or float32 in 0..255.

        Returns:
            float32 (B, P, D), patches in row-major order, of unit length.
        """
        ...

    def words(self, words: Sequence[str], advance: Advance) -> "torch.Tensor":
        """Embed words, T = h(W) (SEA Eq. 5).

        Args:
            words: W words.
            advance: told how many more words are done.

        Returns:
            float32 (W, D), unit length.
        """
        ...


def finite_images(encoder: Encoder, vectors: "torch.Tensor") -> list[bool]:
    """Tell for each image of a batch whether the vectors of its patches are finite.

    Raises:
        UserError: the vectors are other than `Encoder.patches` says, which is the encoder's fault and not an image's.
    """
    import torch  # here, because the name of an encoder is checked before torch is loaded

    rows, columns = encoder.grid
    if vectors.dtype != torch.float32 or vectors.shape[1:] != (rows * columns, encoder.width):
        raise UserError(
            f"--encoder {encoder.spec}: expected float32 vectors of {rows * columns} patches, {rows} x {columns}, and "
            f"width {encoder.width}; found {vectors.dtype} and {tuple(vectors.shape[1:])}"
        )
    lengths = vectors.norm(dim=-1).cpu()  # one copy, because each look at a number on a GPU waits for the GPU
    finite = lengths.isfinite()
    # A zero vector passes, because normalising leaves it zero.
    if (far := ((lengths - 1).abs() > _UNIT) & finite & (lengths > 0)).any():
        raise UserError(f"--encoder {encoder.spec}: expected vectors of unit length; found {float(lengths[far][0]):g}")
    images: list[bool] = finite.all(-1).tolist()
    return images

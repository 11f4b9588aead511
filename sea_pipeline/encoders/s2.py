"""Run any encoder at several scales, as in Scaling on Scales.

It is Shi et al. 2024, arXiv 2403.13043; SEA 5.1 calls it S2-Wrapper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from sea_pipeline.core.devices import exact_float32
from sea_pipeline.core.progress import Advance
from sea_pipeline.encoders.base import Encoder
from sea_pipeline.encoders.spec import EncoderSpec
from sea_pipeline.inputs.crops import scales_reach


class S2Encoder:
    """Averages the base encoder's patch vectors of several scales, on the base's grid and in the base's space.

    An image is preprocessed at the largest scale. The smaller scales are made from it by bicubic interpolation without
    antialiasing, as in the authors' code. At scale s it is cut into s * s tiles of the base's size. The tiles' maps are
    joined and averaged over cells of s x s.

    S2 joins the scales' vectors u along the channels. With a word t repeated once for each scale, and each u of unit
    length, cos([u, u', …], [t, t, …]) is the mean of the cos(u, t). So a patch's vector here is the mean of the u. It
    is normalised to unit length, which multiplies all cosines of the patch by one factor. That changes neither the
    order of its words nor their shares in Eq. 7.
    """

    def __init__(self, base: Encoder, scales: Sequence[int]) -> None:
        self._base = base
        self._scales = tuple(scales)
        self.grid, self.width, self.sign, self.device = base.grid, base.width, base.sign, base.device
        self._scales_text = EncoderSpec(None, scales=self._scales).scales_text()
        self.spec = self._scales_text + base.spec
        reach = scales_reach(base.preprocess.reach, scales)
        self.preprocess = replace(base.preprocess, size=base.preprocess.size * max(scales), reach=reach)

    def fields(self) -> Mapping[str, Any]:
        """See `Encoder.fields`."""
        base = self._base.fields()
        pixels = base["preprocess"] | self.preprocess.fields()
        return {**base, "name": self._scales_text + base["name"], "scales": list(self._scales), "preprocess": pixels}

    def word_fields(self) -> Mapping[str, Any]:
        """Return the base's fields."""
        return self._base.word_fields()

    def words(self, words: Sequence[str], advance: Advance = lambda _: None) -> torch.Tensor:
        """Embed words by the base."""
        return self._base.words(words, advance)

    def load(self) -> None:
        """Load the base."""
        self._base.load()

    @exact_float32()
    @torch.inference_mode()
    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Encoder.patches`. The tiles of one image at all scales go through the base at once."""
        pixels = pixels.to(self.device, non_blocking=True)
        return torch.stack([self._patches(image) for image in pixels])

    def _patches(self, image: torch.Tensor) -> torch.Tensor:
        """Embed one image, (S, S, 3) to (P, D)."""
        exact = image.permute(2, 0, 1).unsqueeze(0).float()
        vectors = self._base.patches(torch.cat([self._tiles(exact, scale) for scale in self._scales]))
        by_scale = torch.split(vectors, [scale * scale for scale in self._scales])
        maps = [self._map(part, scale) for part, scale in zip(by_scale, self._scales, strict=True)]
        return F.normalize(torch.stack(maps).mean(0), dim=-1)  # the mean of the scales' unit vectors u

    def _tiles(self, image: torch.Tensor, scale: int) -> torch.Tensor:
        """Cut (1, 3, S, S) into tiles (scale * scale, s, s, 3), row-major, with s the base's size."""
        tile = self._base.preprocess.size
        side = tile * scale
        if image.shape[-1] != side:
            image = F.interpolate(image, size=(side, side), mode="bicubic")
        cut = image.reshape(3, scale, tile, scale, tile)
        return cut.permute(1, 3, 2, 4, 0).flatten(0, 1)

    def _map(self, tiles: torch.Tensor, scale: int) -> torch.Tensor:
        """Join the tiles' vectors, (scale * scale, P, D), to unit vectors on the base's grid, (P, D)."""
        rows, columns = self.grid
        whole = (
            tiles.reshape(scale, scale, rows, columns, -1).transpose(1, 2).reshape(scale * rows, scale * columns, -1)
        )
        # Average over cells of scale x scale positions, then normalise.
        cells = whole.reshape(rows, scale, columns, scale, -1).mean((1, 3))
        return F.normalize(cells.flatten(0, 1), dim=-1)

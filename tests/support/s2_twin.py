"""S2 as loops over tiles and cells, in float64."""

import torch
import torch.nn.functional as F

from sea_pipeline.encoders import Encoder


def slowly(base: Encoder, scales: list[int], image: torch.Tensor) -> torch.Tensor:
    """(P, D) float64 of one image (S, S, 3), as far as `base` computes in it; that is given float32 pixels."""
    rows, columns = base.grid
    tile = base.preprocess.size
    total = torch.zeros(rows * columns, base.width).double()
    for scale in scales:
        side = scale * tile
        pixels = image.permute(2, 0, 1)[None].double()
        pixels = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=False)[0].permute(1, 2, 0)
        cells: dict[tuple[int, int], torch.Tensor] = {}
        for down in range(scale):
            for right in range(scale):
                part = pixels[down * tile : (down + 1) * tile, right * tile : (right + 1) * tile]
                vectors = base.patches(part[None].float())[0].double()
                for place in range(rows * columns):
                    cells[down * rows + place // columns, right * columns + place % columns] = vectors[place]
        for place in range(rows * columns):
            top, left = scale * (place // columns), scale * (place % columns)
            inside = [cells[top + down, left + right] for down in range(scale) for right in range(scale)]
            mean = torch.stack(inside).mean(0)
            total[place] += mean / mean.norm()
    return total / total.norm(dim=-1, keepdim=True)

"""A frozen tower's output, computed once and kept in memory: for data that is small and seen many times.

An epoch then costs no decoding and no tower. 4 bytes a value: 160 images of 196 tokens of width 1280 take 160 MB, half
a million of 576 x 1024 more than a terabyte.
"""

import os
from collections.abc import Callable

import torch

from sea_pipeline.errors import UserError
from trainer.data import Kept, TrainingData
from trainer.model import AlignedLlava

_SHARE = 0.5
"""Of the machine's memory, at most."""
_BATCH = 8


@torch.no_grad()
def tower_features(
    model: AlignedLlava, data: TrainingData, advance: Callable[[int], None] = lambda _: None
) -> dict[str, Kept]:
    """What enters the projector, by view: float32 (m, width) each, of every image in the data and its labelled crops.

    Raises:
        UserError: they would not fit into the memory.
    """
    owners: dict[str, str] = {}
    for row in data.rows.select_columns(["id", "images"]):
        for image_id in row["images"]:
            owners |= dict.fromkeys(data.views(image_id), row["id"])
    width = model.model.multi_modal_projector.linear_1.in_features
    wanted = 4 * len(owners) * data.grid[0] * data.grid[1] * width
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > _SHARE * memory:
        raise UserError(
            f"data.keep_features: {len(owners):,} images need {wanted / 1e9:,.0f} GB; expected at most half of this "
            f"machine's {memory / 1e9:,.0f} GB; set it to false"
        )
    kept: dict[str, Kept] = {}
    ids = list(owners)
    for start in range(0, len(ids), _BATCH):
        part = ids[start : start + _BATCH]
        images = [data.image(image_id, owners[image_id]) for image_id in part]
        pixels = torch.stack([data.pixels(image) for image, _ in images]).to(model.device)
        for image_id, features, (_, box) in zip(part, model.tower_output(pixels), images, strict=True):
            kept[image_id] = Kept(features.float().cpu(), box)
        advance(len(part))
    return kept

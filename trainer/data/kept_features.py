"""Compute a frozen tower's output once and keep it in memory, for small data that is seen many times.

An epoch then costs no decoding and no tower. A value takes 4 bytes: 160 images of 196 tokens of width 1280 take 160 MB,
half a million images of 576 x 1024 take more than a terabyte.
"""

import torch

from sea_pipeline.core.devices import cores, exact_float32
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.memory import processes_here, usable_memory
from sea_pipeline.core.parallel import ThreadPool, batched, prefetched_map
from sea_pipeline.core.progress import Advance
from trainer.data.dataset import TowerInput, TrainingData
from trainer.model.aligned_llava import AlignedLlava

_SHARE = 0.5
"""At most this share of the memory that may be used is used, by all processes of the machine together."""
_BATCHES = {"cpu": 8, "gpu": 64}


@exact_float32()
@torch.no_grad()
def tower_features(model: AlignedLlava, data: TrainingData, advance: Advance = lambda _: None) -> dict[str, TowerInput]:
    """Compute the projector's input for each view, float32 (m, width).

    The views are all images of the data and their labelled crops. They are computed on the tower's device; one thread
    per core reads images ahead.

    Raises:
        UserError: they would take more than half of the memory that may be used. Each process keeps all of them.
    """
    owners: dict[str, str] = {}
    for row in data.rows.select_columns(["id", "images"]):
        for image_id in row["images"]:
            owners |= dict.fromkeys(data.views(image_id), row["id"])
    width = model.model.multi_modal_projector.linear_1.in_features
    wanted = 4 * len(owners) * data.grid[0] * data.grid[1] * width
    memory, processes = usable_memory(), processes_here()
    if wanted * processes > _SHARE * memory:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"data.keep_features: {len(owners):,} images need {wanted / 1e9:,.0f} GB{each}; expected at most half of "
            f"the {memory / 1e9:,.0f} GB that may be used here; set it to false"
        )
    device = next(model.model.vision_tower.parameters()).device
    size = _BATCHES["cpu" if device.type == "cpu" else "gpu"]

    def read(view: str) -> TowerInput:
        image, box = data.image(view, owners[view])
        return TowerInput(data.pixels(image), box)

    kept: dict[str, TowerInput] = {}
    with ThreadPool(cores()) as pool:
        given = zip(owners, prefetched_map(pool, read, owners, 2 * size), strict=True)
        for batch in batched(given, size):
            pixels = torch.stack([one.values for _, one in batch]).to(device)
            for (view, (_, box)), features in zip(batch, model.tower_output(pixels).float().cpu(), strict=True):
                kept[view] = TowerInput(features, box)
            advance(len(batch))
    return kept

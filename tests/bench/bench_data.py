"""Samples a second that one core makes ready for CLIP-L/336, beside what a GPU trains on."""

import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import CLIPImageProcessor

from sea_pipeline.inputs.crops import FULL
from sea_pipeline.label_cache import label_cache
from sea_pipeline.labels.run import LabelSettings, label_images
from sea_pipeline.labels.store import open_labels
from tests.bench.measure import Figure
from trainer.data.dataset import Collator, TrainingData, TrainingLabels
from trainer.data.run_rows import place_of
from trainer.recipes.recipe import Sea

GRID, IMAGE, BATCH, ROUNDS = (24, 24), 1, 8, 6
GPU = {"stage 1": 3.5, "stage 2": 1.15}
"""Samples a second of LLaVA-1.5-7B on one of 8 A100: 558K in 5.5 h, 665K in 20 h."""
H100 = 3
"""Times an A100's; assumed, not measured."""


class _Processor:
    """CLIP-L/336's image processor, and which token an image is."""

    image_token_id = IMAGE

    def __init__(self) -> None:
        size = {"height": 336, "width": 336}
        self.image_processor = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=size)


def figures() -> list[Figure]:
    """data.samples_per_second."""
    with tempfile.TemporaryDirectory() as scratch:
        label_images(LabelSettings(out=Path(scratch), device="cpu"))
        cache = label_cache(open_labels(Path(scratch)))
        file, _, locate = place_of("samples", None)
        images = sorted({record["image"] for record in json.loads(file.read_text()) if "image" in record})
        row: dict[str, Any] = {"input_ids": [2, IMAGE, *range(3, 90)], "trained": [False] * 30 + [True] * 59}
        rows = Dataset.from_list([row | {"id": name, "images": [name]} for name in images])
        folder: Any = SimpleNamespace(processor=_Processor(), grid=GRID, reach=FULL)
        data = TrainingData(rows, locate, folder, labels=TrainingLabels(cache, Sea(), True, None))
        return [_figure(data, Collator(data, 0, 0))]


def _figure(data: TrainingData, collate: Collator) -> Figure:
    threads, made, begun = torch.get_num_threads(), 0, 0.0
    torch.set_num_threads(1)  # as in a worker of a DataLoader
    for turn in range(ROUNDS + 1):
        begun = begun if turn > 1 else time.thread_time()  # the first round does not count
        for start in range(0, len(data), BATCH):
            batch = [data[turn * len(data) + row] for row in range(start, min(start + BATCH, len(data)))]
            collate(batch)
            made += len(batch) if turn else 0
    rate = made / (time.thread_time() - begun)
    torch.set_num_threads(threads)
    needed = ", ".join(f"{name} {H100 * each:.1f}" for name, each in GPU.items())
    return Figure(
        "data.samples_per_second",
        rate,
        "a core",
        f"what an H100 takes of LLaVA-1.5-7B, {needed} (an A100's, times {H100}, which is assumed); sample "
        "photos to 336 pixels, labels of 196 patches brought to 576, 89 tokens, batches; CPU time of one thread",
    )

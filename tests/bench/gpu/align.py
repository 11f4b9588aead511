"""Alignment without the LLM for LLaVA-1.5-7B: images a second from JPEGs, from kept features, and of the step alone.

    python -m tests.bench.gpu.align [--tiny] [--json FILE] [--images DIR]

CLIP-L/336's tower in bfloat16, the projector, Vicuna's embedding matrix; random weights, labels of mean colours.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from transformers import TrainerCallback

from sea_pipeline import label_run, open_labels
from sea_pipeline.encoders import Preprocess
from sea_pipeline.label_run import LabelSettings, label_images
from sea_pipeline.progress import no_bar
from tests.bench.gpu.common import IMAGES, Setup, main
from tests.bench.gpu.label import photos_for
from tests.bench.gpu.shapes import shape_of
from tests.bench.measure import Figure
from tests.bench.steps import ready, taking
from tests.tiny_models import tiny_llm, tiny_vision
from tests.world import ColourEncoder
from trainer.build import Inputs, build
from trainer.init import init_model
from trainer.load import ModelFolder, open_model_folder
from trainer.loop import AlignTrainer
from trainer.model import Batch
from trainer.recipe import Recipe
from trainer.sources import open_conversations

WARM = 3
"""Steps that do not count: loaders start, kernels are chosen."""


def figures(setup: Setup) -> Iterator[Figure]:
    """align.*: images a second, and the hours that LLaVA-1.5's images take."""
    model, data, labels = _prepared(setup)
    folder, processes = open_model_folder(model), 0 if setup.tiny else min(16, os.cpu_count() or 1)
    for kept in (False, True):
        name, trainer, building = "align.kept" if kept else "align", *_trainer(setup, folder, data, labels, kept)
        size = trainer.args.per_device_train_batch_size
        rate = size / setup.seconds(taking(trainer, _batch(trainer, size)))[0]
        said = f"the step alone, batches of {size} on the device{', kept features' if kept else ''}"
        yield Figure(f"{name}.step", rate, "images/s", said)
        rate = _whole(trainer, size)
        said = "kept features" if kept else f"JPEGs, {processes} processes that read them"
        yield Figure(f"{name}.rate", rate, "images/s", f"a run, from {said}")
        yield Figure(f"{name}.hours", IMAGES / rate / 3600, "h", f"{IMAGES:,} images once, at that rate")
        if kept:
            images = len(open_labels(labels).ids)
            yield Figure(
                f"{name}.first_pass", images / building, "images/s", "the tower's output, once; loading included"
            )


def _prepared(setup: Setup) -> tuple[Path, Path, Path]:
    """A model folder whose LLM has one layer, which is not read; LLaVA's JSON; labels."""
    shape, scratch = shape_of(setup), setup.scratch
    os.environ["SEA_PIPELINE_CACHE"] = str(scratch / "cache")
    text = shape.text | {"num_hidden_layers": 1, "num_key_value_heads": shape.text["num_attention_heads"]}
    text["vocab_size"] = 400 if setup.tiny else 32_000
    vision, llm = tiny_vision(scratch / "vision", **shape.vision), tiny_llm(scratch / "llm", **text)
    model = init_model(str(vision), str(llm), scratch / "model", dtype="float32" if setup.tiny else "bfloat16")
    photos = Path(setup.images) if setup.images else photos_for(setup)
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a photo"}]
    records = [{"id": name, "image": name, "conversations": turns} for name in names]
    (scratch / "data.json").write_text(json.dumps(records))
    with patch.object(label_run, "load_encoder", lambda spec, device, options: _Colours(shape.vision)):
        settings = LabelSettings.of(
            images=str(scratch / "data.json"), image_root=photos, out=scratch / "labels", device="cpu", probe=False
        )
        label_images(settings)
    return model, scratch / "data.json", scratch / "labels"


class _Colours(ColourEncoder):
    """Mean colours on a tower's grid and crop."""

    def __init__(self, vision: dict[str, int]) -> None:
        super().__init__()
        side = vision["image_size"] // vision["patch_size"]
        self.grid, self.preprocess = (side, side), Preprocess(size=vision["image_size"])

    def patches(self, pixels: Any) -> Any:
        side = self.grid[0]
        cells = pixels.float().unflatten(1, (side, -1)).unflatten(3, (side, -1)).mean((2, 4)).flatten(1, 2) / 127.5 - 1
        return cells / cells.norm(dim=-1, keepdim=True).clamp(min=1e-6)


def _trainer(setup: Setup, folder: ModelFolder, data: Path, labels: Path, kept: bool) -> tuple[AlignTrainer, float]:
    """A run's trainer, and the seconds that it took to make."""
    recipe = Recipe.model_validate(
        {
            "model": folder.path,
            "data": {"train": str(data), "image_root": _root(setup), "template": "plain", "keep_features": kept},
            "labels": {"path": labels},
            "loss": {"lm": 0, "sea": {"weight": 1}},
            "training_arguments": {
                "bf16": not setup.tiny,
                "per_device_train_batch_size": 4 if setup.tiny else 32,
                "dataloader_num_workers": 0 if setup.tiny or kept else min(16, os.cpu_count() or 1),
                "max_steps": WARM + (2 if setup.tiny else 40),
                "num_train_epochs": 50,
                "logging_steps": 50,
                "save_strategy": "no",
            },
        }
    )
    inputs = Inputs(recipe, folder, open_conversations(recipe.data, folder), open_labels(labels))
    begun = time.perf_counter()
    trainer = build(inputs, setup.scratch / f"run-{kept}", no_bar, [])
    return trainer, time.perf_counter() - begun


def _root(setup: Setup) -> str:
    return setup.images or str(setup.scratch / "photos")


def _batch(trainer: AlignTrainer, size: int) -> Batch:
    ready(trainer)
    batch = trainer.data_collator([trainer.data[row] for row in range(size)])
    moved: Any = {name: value.to(trainer.args.device) for name, value in batch.items() if name != "seed"}
    moved["seed"] = batch["seed"]
    found: Batch = moved
    return found


class _Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def _whole(trainer: AlignTrainer, size: int) -> float:
    """Images a second of a run, reading included."""
    clock = _Clock()
    trainer.add_callback(clock)
    trainer.optimizer = None
    trainer.train()
    ends = clock.ends[WARM - 1 :]
    return size * (len(ends) - 1) / (ends[-1] - ends[0])


if __name__ == "__main__":
    main(figures, __doc__)

"""One optimizer step of a recipe on the packaged models and eight sample photos, without reading data."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback

from sea_pipeline.core.progress import SILENT
from sea_pipeline.labels.run import LabelSettings, label_images
from sea_pipeline.labels.store import open_labels
from trainer.data.inputs import Inputs
from trainer.data.run_rows import open_conversations
from trainer.model.aligned_llava import Batch
from trainer.model.assemble import init_model
from trainer.model.load import open_model_folder
from trainer.recipes.recipe import Recipe
from trainer.training.align_trainer import AlignTrainer
from trainer.training.build import build

BATCH = 8
SEA: dict[str, Any] = {"sea": {"weight": 1}}


class Step(NamedTuple):
    """What a step is made of; calling `take` takes one."""

    take: Callable[[], object]
    trainer: AlignTrainer
    batch: Batch


def prepare(scratch: Path) -> None:
    """A model of packaged parts and labels of the sample photos, below `scratch`."""
    init_model("packaged", "packaged", scratch / "model")
    label_images(LabelSettings(out=scratch / "labels", device="cpu"))


def one_step(scratch: Path, loss: dict[str, Any], *, measured: bool = False, **recipe: Any) -> Step:
    """A step with the given `loss` and other groups of a recipe; `measured`: of those that measure gradient norms."""
    asked = Recipe.model_validate({"loss": loss} | recipe)
    folder = open_model_folder(scratch / "model")
    inputs = Inputs(asked, folder, open_conversations(asked.data, folder), open_labels(scratch / "labels"))
    trainer = build(inputs, scratch / "run", SILENT, [])
    ready(trainer)
    batch = trainer.data_collator([trainer.data[row] for row in range(BATCH)])
    return Step(taking(trainer, batch, measured=measured), trainer, batch)


def ready(trainer: AlignTrainer) -> None:
    """What `Trainer.train` does before the first step, as far as a step needs it."""
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1


def taking(trainer: AlignTrainer, batch: Batch, *, measured: bool = False) -> Callable[[], object]:
    """What takes one optimizer step on a batch, which lies where the model does."""
    count = torch.tensor(len(batch["targets"]))

    def take() -> None:
        assert trainer.optimizer is not None
        trainer.state.global_step = 0 if measured else 1
        trainer.training_step(trainer.model, dict(batch), count)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return take


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def conversations(file: Path, images: Iterable[str]) -> Path:
    """LLaVA's JSON of so many records, of an image each."""
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a photo"}]
    records = [{"id": str(number), "image": image, "conversations": turns} for number, image in enumerate(images)]
    file.write_text(json.dumps(records))
    return file

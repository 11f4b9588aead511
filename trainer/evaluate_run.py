"""`sea-pipeline evaluate` as a function: a model folder and data in, metrics out."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from sea_pipeline.devices import resolve_device
from sea_pipeline.label_run import ProgressBar, no_bar
from sea_pipeline.store import open_labels
from trainer.data import TrainingData
from trainer.evaluate import Evaluator
from trainer.load import load_model, open_model_folder
from trainer.recipe import Data, LabelSource, Recipe
from trainer.sources import labels_for, open_conversations


class EvaluateSettings(BaseModel):
    """What `sea-pipeline evaluate` is asked for; the fields are its options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path
    """A LLaVA folder."""
    data: str
    """A LLaVA `.json` or `.jsonl` file, or `samples`."""
    labels: Path | None = None
    image_root: Path | None = None
    template: Literal["plain", "vicuna_v1", "own"] = "own"
    transfer: bool = False
    batch_size: int = 8
    device: str = "auto"


def evaluate_model(settings: EvaluateSettings, *, progress: ProgressBar = no_bar) -> dict[str, float]:
    """The metrics of `Evaluator`, of every sample of the data.

    Raises:
        UserError: an input does not fit.
    """
    device = resolve_device(settings.device)
    data = Data(train=settings.data, image_root=settings.image_root, template=settings.template)
    recipe = Recipe(model=settings.model, data=data, labels=LabelSource(transfer=settings.transfer))
    folder = open_model_folder(settings.model)
    conversations = open_conversations(data, folder)
    store = open_labels(settings.labels) if settings.labels else None
    evaluator = Evaluator(
        TrainingData(conversations.train, conversations.locate, folder.processor, folder.grid),
        labels_for(store, folder, recipe.loss.sea, transfer=settings.transfer) if store else None,
        store,
        vocabulary=folder.vocabulary,
        batch_size=settings.batch_size,
        device=device,
    )
    model = load_model(folder, recipe)
    model.to(torch.device(device))  # type: ignore[arg-type]
    with progress("evaluating", len(conversations.train), 0) as advance:
        return evaluator(model, advance)

"""A model of the tiny world that looks at pictures, for the tests of BASIC's analyses."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.labels.store import open_labels
from tests.support.tiny_runs import World
from tests.support.world import COLOURS
from trainer.data.dataset import TrainingData
from trainer.data.inputs import labels_for
from trainer.data.run_rows import open_conversations
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.run import EvaluateSettings, evaluate_model
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.load import ModelFolder, load_model, open_model_folder
from trainer.recipes.recipe import Data, Recipe

M = 16


class Ready(NamedTuple):
    """A model and what evaluates it."""

    folder: ModelFolder
    model: AlignedLlava
    evaluator: Evaluator
    embeddings: torch.Tensor

    def id(self, token: str) -> int:
        return int(self.folder.processor.tokenizer.convert_tokens_to_ids(token))


Make = Callable[..., Ready]


def make_ready(tiny: World) -> Make:
    """See the fixture `ready`."""

    def make(
        records: Path = tiny.data,
        *,
        labelled: bool = False,
        batch_size: int = 8,
        labels: Path = tiny.labels,
        **given: Any,
    ) -> Ready:
        folder = open_model_folder(tiny.model)
        data = Data(train=str(records), **{"image_root": tiny.data.parent / "images", **given})
        conversations = open_conversations(data, folder)
        store = open_labels(labels) if labelled else None
        evaluator = Evaluator(
            TrainingData(conversations.train, conversations.locate, folder),
            labels_for(store, folder, Recipe().loss.sea, transfer=False) if store else None,
            store,
            vocabulary=folder.vocabulary,
            batch_size=batch_size,
        )
        model = load_model(folder, Recipe(model=tiny.model)).train()
        spread(model, evaluator.data)
        return Ready(folder, model, evaluator, evaluator.embeddings(model))

    return make


@torch.no_grad()
def spread(model: AlignedLlava, data: TrainingData) -> None:
    """Makes visual tokens differ, and layers turn them: random weights of 0.02 do neither."""
    pixels = next(pixels for pixels in (data[row]["images"] for row in range(len(data))) if pixels is not None)
    first, second = model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2
    features = model.eval().tower_output(pixels).flatten(0, 1)
    first.weight.mul_(300)
    first.bias.copy_(-first.weight @ features.mean(0))
    second.bias.zero_()
    second.weight.div_(model.model.multi_modal_projector(features).norm(dim=-1).mean())
    model.train()
    for parameter in model.model.language_model.layers.parameters():
        if parameter.ndim == 2:
            parameter.mul_(20)
    norm = model.model.language_model.norm.weight  # of ones it would keep every direction, and hide from a cosine
    norm.copy_(torch.randn(norm.shape, generator=torch.Generator().manual_seed(0)))


def record(name: str, images: list[str], question: str, answer: str, system: str = "") -> dict[str, Any]:
    turns = [{"from": "system", "value": system}] if system else []
    turns += [{"from": "human", "value": "<image>\n" * len(images) + question}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": images, "conversations": turns} if images else {"id": name, "conversations": turns}


def write(path: Path, records: list[Any]) -> Path:
    path.write_text(json.dumps(records))
    return path


def draw_shade(path: Path, colour: str, seed: int, most: int) -> None:
    """Saves a picture of one colour, of which each channel is off by `most` at most."""
    shade = np.clip(np.array(COLOURS[colour]) + np.random.default_rng(seed).integers(-most, most, 3), 0, 255)
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (32, 32), tuple(shade.tolist())).save(path)


def learn(made: Ready, model: AlignedLlava, rate: float, epochs: int, most: float = math.inf) -> None:
    """Trains all of a model on what `made` evaluates, with gradients of norm `most` at most."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    batches = list(made.evaluator.batches(torch.device("cpu")))
    for _ in range(epochs):
        for batch in batches:
            (model(**batch)["lm"] / len(batch["targets"])).backward()
            nn.utils.clip_grad_norm_(model.parameters(), most)
            optimizer.step()
            optimizer.zero_grad()


def evaluate_settings(tiny: World, **more: Any) -> EvaluateSettings:
    """Settings of an evaluation of the world's model on its training data."""
    given = {"model": tiny.model, "data": tiny.data, "image_root": tiny.data.parent / "images", "device": "cpu", **more}
    return EvaluateSettings.of(**given | {"data": str(given["data"])})


def measured(tiny: World, reporter: Reporter = SILENT, **more: Any) -> dict[str, Any]:
    return evaluate_model(evaluate_settings(tiny, **more), reporter=reporter)


class Planted(nn.Module):
    """A projector that always gives the same tokens, (m, d)."""

    def __init__(self, tokens: torch.Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.tokens.expand(len(features), -1, -1)


def nearest_twin(vectors: torch.Tensor, embeddings: torch.Tensor) -> list[int]:
    found = []
    for vector in vectors.double():
        cosines = [float(vector @ row / (vector.norm() * row.norm())) for row in embeddings.double()]
        found.append(cosines.index(max(cosines)))
    return found

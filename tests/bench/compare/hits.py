"""label_hit alone: of labels whose encoder is not installed, which the other metrics of words need."""

from pathlib import Path

import numpy as np
import torch

from sea_pipeline.core.devices import resolve_device
from sea_pipeline.labels.store import open_labels
from trainer.data.dataset import TrainingData
from trainer.data.inputs import labels_for
from trainer.data.run_rows import open_conversations
from trainer.evaluation.evaluator import Evaluator, evaluating
from trainer.measures import metrics
from trainer.model.load import load_model, open_model_folder
from trainer.recipes.recipe import Data, Loss, Recipe, Sea
from trainer.training.report_views import visual_tokens


def label_hits(model: Path, data: Path, photos: Path, labels: Path, device: str = "auto") -> dict[str, float]:
    """Gives label_hit@1 and @10 as `evaluate` does, without the LLM's layers and without the labels' encoder.

    Args:
        model: a LLaVA folder.
        data: LLaVA's JSON.
        photos: where its images are.
        labels: of the images.
        device: of the computation.
    """
    folder, store = open_model_folder(model), open_labels(labels)
    conversations = open_conversations(Data(train=str(data), image_root=photos), folder)
    recipe = Recipe(model=model, loss=Loss(lm=0, sea=Sea(weight=1)))
    evaluator = Evaluator(
        TrainingData(conversations.train, conversations.locate, folder),
        labels_for(store, folder, recipe.loss.sea, transfer=False),
        store,
        vocabulary=folder.vocabulary,
        batch_size=16,
    )
    loaded = load_model(folder, recipe)
    loaded.to(torch.device(resolve_device(device)))  # type: ignore[arg-type]
    found = np.zeros((2, 2), np.int64)
    with evaluating(loaded):
        table = evaluator.word_table(evaluator.embeddings(loaded))
        assert table is not None
        for batch in evaluator.batches(loaded.device):
            visual = visual_tokens(loaded, batch).flatten(0, 1)
            nearest = metrics.nearest(visual, table, measure="cosine").indices.cpu()
            words = evaluator.words(evaluator.images(batch["rows"].tolist())).flatten(0, 1)
            for place, k in enumerate((1, 10)):
                found[place] += metrics.label_hits(nearest, words, k)
    return {f"label_hit@{k}": hits / max(1, seen) for k, (hits, seen) in zip((1, 10), found.tolist(), strict=True)}

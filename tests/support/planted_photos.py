"""Pictures with a colour planted in every cell, their labels and conversations: for the tests of batches."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sea_pipeline import label_cache, open_labels
from sea_pipeline.labels import run as label_run
from tests.support.conversations_json import load
from tests.support.tiny_runs import World, label_settings
from tests.support.world import COLOURS, draw
from trainer.data.dataset import Collator, TrainingData, TrainingLabels
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.load import ModelFolder, open_model_folder
from trainer.model.parts import quiet
from trainer.model.terms import sea_term
from trainer.recipes.recipe import Sea

M = 16
"""Visual tokens of an image: 4 x 4 patches of 8 pixels."""
ROWS = ("one", "two", "text", "long", "same")
IMAGES: dict[str, Any] = {"one": "0.png", "two": ["1.png", "2.png"], "long": "sub/3.png", "same": "0.png"}
TURNS = {
    "one": [("What is it?", "a red square")],
    "two": [("<image> and <image>: which?", "the second"), ("Why?", "It is blue.")],
    "text": [("Which colour?", "red")],
    "long": [("Say it all.", "a red and a green and a blue and a yellow and a cyan patch")],
    "same": [("Again?", "yes")],
}


class Planted(NamedTuple):
    """Pictures of 4 x 6 cells whose centre square is labelled, cell by cell, and conversations about them."""

    folder: ModelFolder
    rows: Any
    photos: Path
    cache: Any
    words: tuple[str, ...]

    def data(self, sea: Sea | None = None, **settings: Any) -> TrainingData:
        given = {"labels": TrainingLabels(self.cache, sea or Sea(window=1), True, None)} | settings
        locate = partial(Path.joinpath, self.photos)
        return TrainingData(self.rows, locate, self.folder, **given)

    def batch(self, *names: str, data: TrainingData | None = None, epoch: int = 0) -> Any:
        data = data or self.data()
        collator = Collator(data, self.folder.processor.tokenizer.pad_token_id, seed=1)
        return collator([data[epoch * len(ROWS) + ROWS.index(name)] for name in names])


def plant(tiny: World, tmp_path: Path) -> Planted:
    random = np.random.default_rng(0)
    for name in ("0.png", "1.png", "2.png", "sub/3.png"):
        cells = [[str(random.choice(list(COLOURS))) for _ in range(6)] for _ in range(4)]
        draw(tmp_path / "photos" / name, cells, size=(72, 48))
    settings = label_settings(tmp_path / "photos", tiny.words, tmp_path / "labels")
    label_run.label_images(settings.model_copy(update={"top_n": 1}))
    store = open_labels(tmp_path / "labels")
    folder = open_model_folder(tiny.model)
    rows = conversations(folder, tmp_path)
    return Planted(folder, rows, tmp_path / "photos", label_cache.label_cache(store), store.words)


def conversations(folder: ModelFolder, tmp_path: Path) -> Any:
    records = []
    for name in ROWS:
        spoken = [(("human", question), ("gpt", answer)) for question, answer in TURNS[name]]
        said = [{"from": who, "value": text} for pair in spoken for who, text in pair]
        records.append({"id": name, "conversations": said} | ({"image": IMAGES[name]} if name in IMAGES else {}))
    (tmp_path / "data.json").write_text(json.dumps(records))
    file, tokenizer = tmp_path / "data.json", folder.processor.tokenizer
    return load(file, tokenizer, "vicuna_v1", image_tokens=M)


def aligned(planted: Planted) -> AlignedLlava:
    with quiet():
        loaded: AlignedLlava = AlignedLlava.from_pretrained(planted.folder.path, dtype=torch.float32).eval()
    loaded.sea_term = sea_term(planted.folder.processor.tokenizer, planted.words, Sea())
    return loaded


def colours(planted: Planted, pixels: torch.Tensor) -> Iterator[str | None]:
    """The colour at the centre of each patch; None where it is a mixture."""
    processor = planted.folder.processor.image_processor
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    for image in (pixels * std + mean) * 255:
        for row in range(4):
            for column in range(4):
                centre = image[:, 8 * row + 3 : 8 * row + 5, 8 * column + 3 : 8 * column + 5].mean((1, 2))
                distances = {name: (centre - torch.tensor(colour)).norm() for name, colour in COLOURS.items()}
                nearest = min(distances, key=lambda name: distances[name])
                yield nearest if distances[nearest] < 25 else None


def pairs(planted: Planted, given: Any) -> list[tuple[int, str]]:
    """Patches and words of a batch."""
    return [(int(p), planted.words[w]) for p, w in zip(given["sea_patches"], given["sea_words"], strict=True)]

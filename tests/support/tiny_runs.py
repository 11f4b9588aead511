"""Training runs of a second: drawn pictures with captions that name their colours, their labels, and a tiny LLaVA.

Also a program: `python -m tests.support.tiny_runs RECIPE.json OUT [EVENT STEP]` trains, and kills itself where it is
told to.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from sea_pipeline.core.progress import SILENT
from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.run import LabelSettings
from sea_pipeline.storage.hashing import fingerprint_of
from tests.support.tiny_models import tiny_model
from tests.support.world import COLOURS, ColourEncoder, draw, word_file
from trainer.data.inputs import Inputs, open_label_source, open_teacher
from trainer.data.run_rows import open_conversations
from trainer.evaluation import evaluator
from trainer.model import checkpoints
from trainer.model.load import open_model_folder
from trainer.recipes.recipe import Recipe
from trainer.training import run as train_run
from trainer.training.align_trainer import AlignTrainer
from trainer.training.build import build
from trainer.training.callbacks import MetricsLog, is_evaluation

ROWS = 12
"""Samples to train on: captions, a conversation of two turns, a text without an image. Three more are held out."""


class SquareEncoder(ColourEncoder):
    """The colour encoder on the tiny tower's grid."""

    grid = (4, 4)


class World(NamedTuple):
    """Where everything is."""

    model: Path
    data: Path
    held_out: Path
    labels: Path
    words: Path


def make_world(root: Path) -> World:
    """Draws, writes, labels and initialises everything below `root`."""
    random = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    for number in range(ROWS + 3):
        cells = [[str(random.choice(list(COLOURS))) for _ in range(4)] for _ in range(4)]
        draw(root / "images" / f"{number:02d}.png", cells, size=(48, 48))
        caption = f"a {cells[0][0]} and a {cells[1][1]} patch"
        turns = ["<image>\nWhat do you see?", caption]
        turns += ["Which colour is the corner?", cells[0][0]] if number == 1 else []
        records.append({"id": f"s{number}", "image": f"{number:02d}.png", "conversations": exchange(*turns)})
    records[2] = {"id": "text", "conversations": exchange("Which colour is the left half?", "red or blue")}
    world = World(root / "model", root / "data.json", root / "held.json", root / "labels", root / "colours.txt")
    world.data.write_text(json.dumps(records[:ROWS]))
    world.held_out.write_text(json.dumps(records[ROWS:]))
    with colours():
        label_run.label_images(label_settings(root / "images", word_file(world.words), world.labels))
    tiny_model(world.model)
    return world


def label_settings(images: Path, words: Path, out: Path, top_n: int = 3) -> LabelSettings:
    return LabelSettings.of(images=str(images), wordlist=str(words), top_n=top_n, out=out, device="cpu")


def exchange(*values: str) -> list[dict[str, str]]:
    """Turns by a human and the model in turn."""
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


@contextmanager
def colours(patch: pytest.MonkeyPatch | None = None) -> Iterator[None]:
    """The square encoder in place of every other, and one thread: the tiny tensors gain nothing from more.

    A test that patches the same names gives its own `patch`: two that end in another order leave something behind.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as own:
        for module in (label_run, evaluator):
            (patch or own).setattr(module, "load_encoder", lambda spec, device, options=None: SquareEncoder())
        yield
    torch.set_num_threads(threads)


def tiny_recipe(world: World, **changes: Any) -> Recipe:
    """Batches of 4, 3 steps an epoch, with L_a and without an evaluation; `changes` go into the groups.

    A single step is no warm-up, which would train nothing.
    """
    base = {
        "model": str(world.model),
        "data": {"train": str(world.data), "image_root": str(world.data.parent / "images")},
        "labels": {"path": str(world.labels)},
        "loss": {"sea": {"weight": 1.0}},
        "seed": 3,
        "training_arguments": {
            "per_device_train_batch_size": 4,
            "max_steps": 8,
            "save_steps": 2,
            "save_total_limit": 9,
        },
    }
    merged = _merge(base, changes)
    if merged["training_arguments"]["max_steps"] == 1:
        merged["training_arguments"].setdefault("warmup_steps", 0)
    return Recipe.model_validate(merged)


def short_recipe(world: World, **changes: Any) -> Recipe:
    """As above, of two steps."""
    return tiny_recipe(world, **({"training_arguments": {"max_steps": 2}} | changes))


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    nested = {key: _merge(below[key], value) for key, value in above.items() if isinstance(below.get(key), dict)}
    return below | above | nested


def tiny_trainer(recipe: Recipe, out: Path) -> AlignTrainer:
    """The trainer of a run, as `train` makes it."""
    folder = open_model_folder(Path(str(recipe.model)), recipe.data.image_aspect_ratio)
    conversations = open_conversations(recipe.data, folder)
    store = open_label_source(recipe, folder, conversations)
    out.mkdir(parents=True, exist_ok=True)
    log = MetricsLog(out / "metrics.jsonl", lambda title, values: None)
    targets = open_teacher(recipe, folder, conversations)
    return build(Inputs(recipe, folder, conversations, store, targets), out, SILENT, [log])


class FinishedRuns:
    """Trains each recipe once, however many tests ask for its run; nobody may change one in its place."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, recipe: Recipe) -> Path:
        out = self._root / fingerprint_of(recipe.model_dump(mode="json"))[:16]
        with colours():
            return train_run.train(recipe, out).out

    def copy(self, recipe: Recipe, out: Path) -> Path:
        """A copy to spoil."""
        return Path(shutil.copytree(self(recipe), out))


def lines_of(out: Path) -> list[dict[str, Any]]:
    """All of metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def logged(out: Path) -> list[dict[str, Any]]:
    """Its steps."""
    return [line for line in lines_of(out) if "loss" in line]


def evaluations(out: Path) -> list[dict[str, Any]]:
    """Its evaluations."""
    return [line for line in lines_of(out) if is_evaluation(line)]


def kill_at(event: str, step: int) -> None:
    """Arms a SIGKILL of this process: as a step is logged, or with a checkpoint half-written."""

    def die(happened: Callable[..., bool], act: Callable[..., Any]) -> Callable[..., Any]:
        def acts(*given: Any, **named: Any) -> Any:
            result = act(*given, **named)
            if happened(*given):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return acts

    if event == "log":
        MetricsLog.on_log = die(lambda log, args, state, control: state.global_step == step, MetricsLog.on_log)  # type: ignore[method-assign]
    else:
        checkpoints.save_trained = die(
            lambda state, balances, folder: folder.name == f"checkpoint-{step}", checkpoints.save_trained
        )


def main() -> None:
    recipe, out, *kill = sys.argv[1:]
    if kill:
        kill_at(kill[0], int(kill[1]))
    with colours():
        train_run.train(Recipe.model_validate_json(Path(recipe).read_text()), Path(out))


if __name__ == "__main__":
    main()

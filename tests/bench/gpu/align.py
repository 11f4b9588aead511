"""Alignment without the LLM for LLaVA-1.5-7B: images a second from JPEGs, from kept features, and of the step alone.

    python -m tests.bench.gpu.align [--tiny] [--json FILE] [--images DIR]

CLIP-L/336's tower in bfloat16, the projector, Vicuna's embedding matrix; random weights, labels of mean colours.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from sea_pipeline import open_labels
from sea_pipeline.core.devices import cores
from sea_pipeline.core.progress import SILENT
from sea_pipeline.encoders import Preprocess
from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.run import LabelSettings, label_images
from tests.bench.gpu.common import IMAGES, Setup, main
from tests.bench.gpu.label import photos_for, words_for
from tests.bench.gpu.shapes import shape_of
from tests.bench.measure import Figure
from tests.bench.steps import Clock, conversations, ready, taking
from tests.support.tiny_models import tiny_llm, tiny_vision
from tests.support.world import ColourEncoder
from trainer.data.inputs import Inputs
from trainer.data.run_rows import open_conversations
from trainer.model.assemble import init_model
from trainer.model.load import ModelFolder, open_model_folder
from trainer.recipes.recipe import Recipe
from trainer.training.align_trainer import AlignTrainer
from trainer.training.build import build

PHOTOS, KEPT = 2000, 256
"""Images of the runs from JPEGs and from kept features; each is in several records."""
COUNTED = 120
"""Steps of a run that are timed."""


class _Pace(NamedTuple):
    """What a run reads at once."""

    size: int
    """Samples a step."""
    processes: int
    """That read."""
    warm: int
    """Steps that do not count: what the processes had read ahead before the first."""
    steps: int


def _pace(setup: Setup, side: int) -> _Pace:
    """As many processes as there are cores, as far as their batches fit into shared memory."""
    if setup.tiny:
        return _Pace(4, 0, 3, 5)
    size = 32
    free, batch = shutil.disk_usage("/dev/shm").free, 4 * size * 3 * side**2
    processes = min(16, cores(), free // (3 * batch))
    return _Pace(size, processes, max(3, 2 * processes), max(3, 2 * processes) + COUNTED)


def figures(setup: Setup) -> Iterator[Figure]:
    """align.*: images a second, and the hours that LLaVA-1.5's images take."""
    pace = _pace(setup, shape_of(setup).vision["image_size"])
    folder, labels = _prepared(setup, pace)
    yield from setup.guarded("align", _of_run(setup, "align", folder, labels, pace))
    kept = pace._replace(processes=0, warm=3, steps=pace.steps - pace.warm + 3)
    yield from setup.guarded("align.kept", _of_run(setup, "align.kept", folder, labels, kept))


def _of_run(setup: Setup, name: str, folder: ModelFolder, labels: Path, pace: _Pace) -> Iterator[Figure]:
    kept = name == "align.kept"
    trainer, building = _trainer(setup, folder, labels, pace, name)
    rate = pace.size / setup.seconds(_one_step(trainer, pace.size))[0]
    said = f"the step alone, batches of {pace.size} on the device{', kept features' if kept else ''}"
    yield Figure(f"{name}.step", rate, "images/s", said)
    rate = _whole(trainer, pace)
    said = "kept features" if kept else f"JPEGs, {pace.processes} processes that read them"
    yield Figure(f"{name}.rate", rate, "images/s", f"a run, {pace.steps - pace.warm} steps of {pace.size}, from {said}")
    yield Figure(f"{name}.hours", IMAGES / rate / 3600, "h", f"{IMAGES:,} images once, at that rate")
    if kept:
        images = len(trainer.data.kept or ())
        said = f"the tower's output of {images} images, once; loading included"
        yield Figure(f"{name}.first_pass", images / building, "images/s", said)


def _prepared(setup: Setup, pace: _Pace) -> tuple[ModelFolder, Path]:
    """A model folder whose LLM has one layer, which is not read, and labels; beside them LLaVA's JSON for both runs."""
    shape, scratch = shape_of(setup), setup.scratch
    os.environ["SEA_PIPELINE_CACHE"] = str(scratch / "cache")
    text = shape.text | {"num_hidden_layers": 1, "num_key_value_heads": shape.text["num_attention_heads"]}
    text |= {"vocab_size": 400 if setup.tiny else 32_000, "intermediate_size": 64}
    vision, llm = tiny_vision(scratch / "vision", **shape.vision), tiny_llm(scratch / "llm", **text)
    model = init_model(str(vision), str(llm), scratch / "model", dtype="float32" if setup.tiny else "bfloat16")
    photos = photos_for(setup, PHOTOS)
    names = sorted(path.name for path in photos.iterdir())[:PHOTOS]
    read = 0 if setup.tiny else pace.steps * pace.size  # so that no epoch ends within
    for run, some, least in (("labels", names, 0), ("align", names, read), ("align.kept", names[:KEPT], read)):
        conversations(scratch / f"{run}.json", islice(cycle(some), max(len(some), least)))
    given = {"images": str(scratch / "labels.json"), "image_root": photos, "wordlist": words_for(setup)}
    return open_model_folder(model), colour_labels(shape.vision, scratch / "labels", **given)


def colour_labels(vision: dict[str, int], out: Path, **settings: Any) -> Path:
    """Labels of mean colours on a tower's grid, in the folder `out`; `settings` are those of `label`."""
    with patch.object(label_run, "load_encoder", lambda spec, device, options: _Colours(vision)):
        label_images(LabelSettings.of(**settings, out=out, device="cpu", probe=False))
    return out


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


def _trainer(setup: Setup, folder: ModelFolder, labels: Path, pace: _Pace, name: str) -> tuple[AlignTrainer, float]:
    """A run's trainer, and the seconds that it took to make."""
    data = {
        "train": str(setup.scratch / f"{name}.json"),
        "image_root": str(setup.scratch / "photos"),
        "template": "plain",
    }
    recipe = Recipe.model_validate(
        {
            "model": folder.path,
            "data": data | {"keep_features": name == "align.kept"},
            "labels": {"path": labels},
            "loss": {"lm": 0, "sea": {"weight": 1}},
            "training_arguments": {
                "bf16": not setup.tiny,
                "per_device_train_batch_size": pace.size,
                "dataloader_num_workers": pace.processes,
                "max_steps": pace.steps,
                "num_train_epochs": 50,
                "logging_steps": 50,
                "save_strategy": "no",
            },
        }
    )
    inputs = Inputs(recipe, folder, open_conversations(recipe.data, folder), open_labels(labels))
    begun = time.perf_counter()
    trainer = build(inputs, setup.scratch / f"run-{name}", SILENT, [])
    return trainer, time.perf_counter() - begun


def _one_step(trainer: AlignTrainer, size: int) -> Callable[[], None]:
    """What takes a step on the first samples, read already, in the precision that `train` computes in."""
    ready(trainer)
    batch = trainer.data_collator([trainer.data[row] for row in range(size)])
    moved: Any = {name: value.to(trainer.args.device) for name, value in batch.items() if name != "seed"}
    moved["seed"] = batch["seed"]
    take = taking(trainer, moved)

    def step() -> None:
        with trainer.accelerator.autocast():  # the Trainer prepares its model for it in `train` alone
            take()

    return step


def _whole(trainer: AlignTrainer, pace: _Pace) -> float:
    """Images a second of a run, reading included."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.optimizer = None
    trainer.train()
    ends = clock.ends[pace.warm - 1 :]
    return pace.size * (len(ends) - 1) / (ends[-1] - ends[0])


if __name__ == "__main__":
    main(figures, __doc__)

"""Alignment without the LLM beside a step through it: packaged models, float32.

Also a program, whose memory is measured: `python -m tests.bench.bench_align SCRATCH lm|align` takes one step.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from sea_pipeline.label_run import LabelSettings, label_images, no_bar
from sea_pipeline.store import open_labels
from tests.bench.measure import Figure, in_turn
from tests.memory import READY, measured
from trainer.build import Inputs, build
from trainer.init import init_model
from trainer.load import open_model_folder
from trainer.recipe import Recipe
from trainer.sources import open_conversations

BATCH = 8


def figures() -> Iterator[Figure]:
    """align.kept_step_speedup and align.memory_ratio."""
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(StringIO()):
        place = Path(scratch)
        init_model("packaged", "packaged", place / "model")
        label_images(LabelSettings(out=place / "labels", device="cpu"))
        yield _speed(place)
        yield _memory(place)


def _speed(scratch: Path) -> Figure:
    lm, align = in_turn(one_step(scratch, "lm"), one_step(scratch, "align"))
    return Figure(
        "align.kept_step_speedup",
        lm / align,
        "x",
        f"a step of L_lm, {lm:.2f} s for {BATCH} samples; of SEA without the LLM, with kept features "
        f"{1000 * align:.1f} ms",
    )


def _memory(scratch: Path) -> Figure:
    lm, align = (measured("-m", "tests.bench.bench_align", str(scratch), name) for name in ("lm", "align"))
    return Figure(
        "align.memory_ratio",
        lm.peak / align.peak,
        "x",
        f"a process that loads the model and takes a step of L_lm, {lm.peak / 1e9:.2f} GB of anonymous memory at most; "
        f"of SEA without the LLM, with kept features {align.peak / 1e9:.2f} GB, the imports' {align.before / 1e9:.2f} "
        "GB included",
    )


def one_step(scratch: Path, name: str) -> Callable[[], object]:
    """An optimizer step on the sample photos, without reading data: `lm` from pixels, `align` from kept features."""
    loss: dict[str, Any] = {"lm": 0, "sea": {"weight": 1}} if name == "align" else {"lm": 1, "sea": {"weight": 0}}
    recipe = Recipe.model_validate({"loss": loss, "data": {"keep_features": name == "align"}})
    folder = open_model_folder(scratch / "model")
    store = open_labels(scratch / "labels") if name == "align" else None
    inputs = Inputs(recipe, folder, open_conversations(recipe.data, folder), store)
    trainer = build(inputs, scratch / name, no_bar, [])
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator([trainer.data[row] for row in range(BATCH)])
    count = torch.tensor(len(batch["targets"]))

    def step() -> None:
        assert trainer.model is not None
        assert trainer.optimizer is not None
        trainer.training_step(trainer.model, dict(batch), count)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


if __name__ == "__main__":
    exec(READY)
    one_step(Path(sys.argv[1]), sys.argv[2])()

"""A training step with SEA beside one without, and beside other ways to compute it: packaged models, float32."""

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
from trainer.build import Inputs, build
from trainer.data import Collator
from trainer.init import init_model
from trainer.load import ModelFolder, open_model_folder
from trainer.loop import AlignTrainer
from trainer.model import AlignedLlava, Batch
from trainer.recipe import Recipe
from trainer.sources import open_conversations

BATCH = 8
SEA = {"sea": {"weight": 1}}


def figures() -> Iterator[Figure]:
    """sea.step_ratio, lm.text_logits_speedup and align.step_speedup."""
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(StringIO()):
        yield from _figures(Path(scratch))


def _figures(scratch: Path) -> Iterator[Figure]:
    folder = open_model_folder(init_model("packaged", "packaged", scratch / "model"))
    label_images(LabelSettings(out=scratch / "labels", device="cpu"))
    steps = {
        name: one_step(scratch, folder, loss, measured=name == "measured")
        for name, loss in (("lm", {}), ("sea", SEA), ("measured", SEA), ("align", SEA | {"lm": 0}))
    }
    everywhere = _logits_everywhere(*steps["lm"][1:])
    lm, sea, measured, align, stock = in_turn(
        *(steps[name][0] for name in ("lm", "sea", "measured", "align")), everywhere
    )
    every = Recipe().loss.measure_every
    with_sea = sea + (measured - sea) / every  # gradient norms are measured at one step of so many
    yield Figure(
        "sea.step_ratio",
        with_sea / lm,
        "x",
        f"a step of L_lm alone, {lm:.2f} s for {BATCH} samples; with SEA {sea:.2f} s, {measured:.2f} s where gradient "
        f"norms are measured (one step of {every})",
    )
    yield Figure(
        "lm.text_logits_speedup",
        stock / lm,
        "x",
        f"the stock forward, whose logits are those of every position, {stock:.2f} s",
    )
    yield Figure(
        "align.step_speedup", lm / align, "x", f"a step of L_lm; of SEA without the LLM's layers {align:.3f} s"
    )


def one_step(
    scratch: Path, folder: ModelFolder, loss: dict[str, Any], *, measured: bool = False
) -> tuple[Callable[[], object], AlignTrainer, Batch]:
    """One optimizer step on eight sample photos, without reading data; `measured`: of those that measure gradients."""
    recipe = Recipe.model_validate({"loss": loss})
    conversations = open_conversations(recipe.data, folder)
    inputs = Inputs(recipe, folder, conversations, open_labels(scratch / "labels"))
    trainer = build(inputs, scratch / "run", no_bar, [])
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    batch = Collator(trainer.data, 0, 0)([trainer.data[row] for row in range(BATCH)])
    count = torch.tensor(len(batch["targets"]))

    def step() -> None:
        trainer.state.global_step = 0 if measured else 1
        trainer._measured_step = -1
        trainer.training_step(trainer.model, dict(batch), count)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step, trainer, batch


def _logits_everywhere(trainer: AlignTrainer, batch: Batch) -> Callable[[], object]:
    """The same step by the stock forward, with labels."""
    model: AlignedLlava = trainer.model
    labels = torch.full_like(batch["input_ids"], -100)
    after = batch["predict"] + 1
    labels.view(-1)[after] = batch["input_ids"].view(-1)[after]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}

    def step() -> None:
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step

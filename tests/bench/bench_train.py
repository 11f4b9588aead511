"""A training step with SEA beside one without, and beside other ways to compute it: packaged models, float32."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch

from sea_pipeline.label_run import LabelSettings, label_images
from sea_pipeline.store import open_labels
from tests.bench.measure import Figure, in_turn
from trainer.balance import Balance
from trainer.data import Collator, TrainingData
from trainer.init import init_model
from trainer.load import load_model, open_model_folder, sea_term
from trainer.loop import AlignTrainer, training_arguments
from trainer.model import AlignedLlava, Batch
from trainer.recipe import Recipe
from trainer.sources import labels_for, open_conversations

BATCH = 8


def figures() -> Iterator[Figure]:
    """sea.step_ratio, lm.text_logits_speedup and align.step_speedup."""
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(StringIO()):
        yield from _figures(Path(scratch))


def _figures(scratch: Path) -> Iterator[Figure]:
    folder = open_model_folder(init_model("packaged", "packaged", scratch / "model"))
    label_images(LabelSettings(out=scratch / "labels", device="cpu"))
    steps = {name: _step(scratch, folder, name) for name in ("lm", "sea", "measured", "align")}
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


def _step(scratch: Path, folder, name: str) -> tuple[Callable[[], object], AlignTrainer, Batch]:
    """One optimizer step of a run on the sample photos, without reading data."""
    sea = {"weight": 0 if name == "lm" else 1}
    recipe = Recipe.model_validate({"loss": {"lm": 0 if name == "align" else 1, "sea": sea}})
    store = open_labels(scratch / "labels")
    conversations = open_conversations(recipe.data, folder)
    model = load_model(folder, recipe)
    balance = None
    if recipe.loss.sea.weight:
        model.sea_term, balance = sea_term(folder, store.words, recipe.loss.sea), Balance(1.0, 1.0)
    labels = labels_for(store, folder, recipe.loss.sea, transfer=False) if balance else None
    data = TrainingData(conversations.train, conversations.locate, folder.processor, folder.grid, labels=labels)
    trainer = AlignTrainer(model, balance, data, recipe, training_arguments(recipe, scratch / name))
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    batch = Collator(data, 0, 0)([data[row] for row in range(BATCH)])
    count = torch.tensor(len(batch["targets"]))

    def step() -> None:
        trainer.state.global_step = 1
        trainer._measured_step = -1
        if name == "measured":
            trainer.state.global_step = 0
        trainer.training_step(model, dict(batch), count)
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

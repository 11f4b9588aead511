"""A training step with SEA beside one without, and beside the stock forward: packaged models, float32."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch

from tests.bench.measure import Figure, in_turn
from tests.bench.steps import BATCH, SEA, Step, one_step, prepare
from trainer.recipes.recipe import Recipe


def figures() -> Iterator[Figure]:
    """sea.step_ratio and lm.text_logits_speedup."""
    with tempfile.TemporaryDirectory() as scratch, redirect_stderr(StringIO()):
        prepare(Path(scratch))
        yield from _figures(Path(scratch))


def _figures(scratch: Path) -> Iterator[Figure]:
    without = one_step(scratch, {})
    lm, sea, measured, stock = in_turn(
        without.take,
        one_step(scratch, SEA).take,
        one_step(scratch, SEA, measured=True).take,
        _logits_everywhere(without),
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


def _logits_everywhere(same: Step) -> Callable[[], object]:
    """The same step by the stock forward, with labels."""
    _, trainer, batch = same
    model = trainer.model
    labels = torch.full_like(batch["input_ids"], -100)
    after = batch["predict"] + 1
    labels.view(-1)[after] = batch["input_ids"].view(-1)[after]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}

    def step() -> None:
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step

"""A step of stage 1 on LLaVA-1.5-7B with each set of terms: seconds, memory, and where the time goes.

    python -m tests.bench.gpu.train [--tiny] [--json FILE]

Random weights in bfloat16, 16 samples a step or what fits, without and with gradient checkpointing.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from tests.bench.gpu.common import Setup, main
from tests.bench.gpu.kernels import Profile
from tests.bench.gpu.naive import naive_step
from tests.bench.gpu.shapes import Shape, batch_of, shape_of, trainer_of
from tests.bench.measure import Figure
from tests.bench.steps import taking
from trainer.losses import equations
from trainer.losses.attention_tap import AttentionRecording
from trainer.losses.supervision import LayerRecorder
from trainer.model.aligned_llava import AlignedLlava, Batch
from trainer.training.align_trainer import AlignTrainer

VARIANTS: dict[str, tuple[str, ...]] = {
    "lm": (),
    "sea": ("sea",),
    "basic": ("das", "sds"),
    "both": ("sea", "das", "sds"),
}
PARTS = (
    (AlignedLlava, "tower_output", "the tower"),
    (AlignedLlava, "_language_loss", "the LLM's forward, what BASIC reads of it included"),
    (equations, "sea", "L_a, forward"),
    (equations, "das", "L_das, forward"),
    (equations, "sds", "L_sds, with its gradient"),
)
WITHIN = ((AttentionRecording, "add", "a_i: the tap"), (LayerRecorder, "layer", "V^: sums over layers"))
"""Parts of the LLM's forward."""
REST = "the rest: backward, optimizer"


class _Ready(NamedTuple):
    trainer: AlignTrainer
    batch: Batch
    size: int


def figures(setup: Setup) -> Iterator[Figure]:
    """train.plain.* and train.checkpointed.*: each variant beside L_lm alone, naive beside ours; train.kernels.*."""
    shape = shape_of(setup)
    trainer = trainer_of(setup, shape)
    for mode in ("plain", "checkpointed"):
        if mode == "checkpointed":
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        found = _fitting(setup, trainer, shape)
        if found is None:
            yield Figure(f"train.{mode}.batch", 0, "samples", "not even one fits")
            continue
        yield Figure(f"train.{mode}.batch", found.size, "samples", f"the most of {shape.batch}, halved, that fits")
        pieces = {"variants": _variants(setup, f"train.{mode}", found)}
        pieces |= {"kernels": _kernels(found)} if mode == "plain" else {}
        pieces |= {"naive": _naive(setup, f"train.{mode}", found, shape)}
        for name, piece in pieces.items():
            yield from setup.guarded(f"train.{mode}.{name}", piece)


def _fitting(setup: Setup, trainer: AlignTrainer, shape: Shape) -> _Ready | None:
    """The largest batch of which a step with all terms fits."""
    size = shape.batch
    while size:
        ready = _Ready(trainer, batch_of(shape, size, setup.device), size)
        if setup.if_fits(partial(_took, _step(ready, "both"))):
            return ready
        size //= 2
    return None


def _took(step: Callable[[], object]) -> bool:
    step()
    return True


def _step(ready: _Ready, variant: str) -> Callable[[], None]:
    trainer, terms = ready.trainer, VARIANTS[variant]
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    whole = (model.sea_term, model.basic_term, dict(trainer.balances))
    tapped = model.model.language_model.config._attn_implementation
    take = taking(trainer, ready.batch)

    def step() -> None:
        """With the model as it is where only these terms are on."""
        sea, basic, balances = whole
        model.sea_term = sea if "sea" in terms else None
        model.basic_term = basic if "sds" in terms else None
        trainer.balances = {name: balances[name] for name in terms}
        model.model.language_model.config._attn_implementation = tapped if "sds" in terms else "sdpa"
        try:
            take()
        finally:
            model.sea_term, model.basic_term, trainer.balances = sea, basic, balances
            model.model.language_model.config._attn_implementation = tapped
            trainer.optimizer.zero_grad()

    return step


def _variants(setup: Setup, name: str, ready: _Ready) -> Iterator[Figure]:
    steps = {variant: _step(ready, variant) for variant in VARIANTS}
    lm, sea = setup.seconds(steps["lm"], steps["sea"], repeats=12)  # a difference of 1 % is to be seen
    again, basic, both = setup.seconds(steps["lm"], steps["basic"], steps["both"])
    times = {"sea": (sea, lm), "basic": (basic, again), "both": (both, again)}
    peaks = {variant: setup.peak(step) / 2**30 for variant, step in steps.items()}
    where = f"{ready.size} samples of {ready.batch['input_ids'].shape[1]} tokens at most"
    yield Figure(f"{name}.lm.seconds", lm, "s", f"a step of L_lm alone, {where}")
    yield Figure(f"{name}.lm.peak", peaks["lm"], "GiB", "the same; weights included")
    for variant, (spent, alone) in times.items():
        yield Figure(f"{name}.{variant}.seconds", spent, "s", f"a step with {', '.join(VARIANTS[variant])}, {where}")
        said = f"a step of L_lm alone in turn with it, {alone:.3f} s; {spent:.3f} s, {where}"
        yield Figure(f"{name}.{variant}.time_ratio", spent / alone, "x", said)
        said = f"a step of L_lm alone, {peaks['lm']:.1f} GiB; {peaks[variant]:.1f} GiB"
        yield Figure(f"{name}.{variant}.memory_ratio", peaks[variant] / peaks["lm"], "x", said)


def _naive(setup: Setup, name: str, ready: _Ready, shape: Shape) -> Iterator[Figure]:
    """Beside ours with the same terms, at the largest batch at which the naive step fits."""
    for kind, exact in {"naive": False, "naive_float32": True}.items():
        said = "eager attentions and hidden states of all layers, both distributions in full"
        said += ", L_sds's products in float32, as the formula reads" if exact else ", L_sds's products as ours"
        size = ready.size
        while size:
            smaller = ready if size == ready.size else _Ready(ready.trainer, batch_of(shape, size, setup.device), size)
            naive = naive_step(ready.trainer, smaller.batch, exact=exact)
            # One after the other: the memory of one must not be in the way of the other's time.
            slow = setup.if_fits(partial(_time_and_peak, setup, naive))
            fast = setup.if_fits(partial(_time_and_peak, setup, _step(smaller, "both")))
            if slow and fast:
                beside = f"ours, {fast[0]:.3f} s at {size} samples; {slow[0]:.3f} s: {said}"
                yield Figure(f"{name}.{kind}.time_ratio", slow[0] / fast[0], "x", beside)
                beside = f"ours, {fast[1]:.1f} GiB at {size} samples; {slow[1]:.1f} GiB"
                yield Figure(f"{name}.{kind}.memory_ratio", slow[1] / fast[1], "x", beside)
                break
            yield Figure(f"{name}.{kind}.batch_{size}", math.nan, "x", "naive does not fit at this batch; ours does")
            size //= 2


def _time_and_peak(setup: Setup, step: Callable[[], object]) -> tuple[float, float]:
    """Seconds, GiB."""
    return setup.seconds(step, repeats=3)[0], setup.peak(step) / 2**30


def _kernels(ready: _Ready) -> Iterator[Figure]:
    """The kernels' time in a step with all terms: by part of the forward, and by kernel, the largest first."""
    with _marked():
        profile = Profile(_step(ready, "both"))
    beside = f"of {profile.whole:.3f} s of kernels in a step with all terms, {ready.size} samples"
    parts = {part: profile.share(part) for *_, part in PARTS}
    parts[REST] = 1 - sum(parts.values())
    parts |= {part: profile.share(part) for *_, part in WITHIN}
    for part, share in sorted(parts.items(), key=lambda item: -item[1]):
        yield Figure(f"train.kernels.{part}", share, "share", beside)
    yield from profile.largest("train.kernels", beside)


@contextmanager
def _marked() -> Iterator[None]:
    """Names the parts to the profiler; what the backward pass does runs outside of them."""
    with ExitStack() as stack:
        for owner, name, part in (*PARTS, *WITHIN):
            stack.enter_context(patch.object(owner, name, _named(getattr(owner, name), part)))
        yield


def _named(action: Callable[..., Any], part: str) -> Callable[..., Any]:
    def named(*given: Any, **options: Any) -> Any:
        with torch.profiler.record_function(part):
            return action(*given, **options)

    return named


if __name__ == "__main__":
    main(figures, __doc__)

"""A step of stage 1 on LLaVA-1.5-7B with each set of terms: seconds, memory, and where the time goes.

    python -m tests.bench.gpu.train [--tiny] [--json FILE]

Random weights in bfloat16, 16 samples a step or what fits, without and with gradient checkpointing.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from tests.bench.gpu.common import Setup, main
from tests.bench.gpu.naive import naive_step
from tests.bench.gpu.shapes import Shape, batch_of, shape_of, trainer_of
from tests.bench.measure import Figure
from tests.bench.steps import taking
from trainer import losses
from trainer.loop import AlignTrainer
from trainer.model import AlignedLlava, Batch
from trainer.supervision import Seen
from trainer.tap import Tapped

VARIANTS: dict[str, tuple[str, ...]] = {
    "lm": (),
    "sea": ("sea",),
    "basic": ("das", "sds"),
    "both": ("sea", "das", "sds"),
}
PARTS = (
    (AlignedLlava, "tower_output", "the tower"),
    (AlignedLlava, "_language_loss", "the LLM's forward, what BASIC reads of it included"),
    (Tapped, "add", "a_i: the tap"),
    (Seen, "layer", "V^: sums over layers"),
    (losses, "sea", "L_a, forward"),
    (losses, "das", "L_das, forward"),
    (losses, "sds", "L_sds, with its gradient"),
)
KERNELS = 8


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
        yield from _variants(setup, f"train.{mode}", found)
        yield from _naive(setup, f"train.{mode}", found, shape)
        if mode == "plain":
            yield from _kernels(setup, found)


def _fitting(setup: Setup, trainer: AlignTrainer, shape: Shape) -> _Ready | None:
    """The largest batch of which a step with all terms fits."""
    size = shape.batch
    while size:
        ready = _Ready(trainer, batch_of(shape, size, setup.device), size)
        if _fits(setup, _step(ready, "both")):
            return ready
        size //= 2
    return None


def _fits(setup: Setup, step: Callable[[], object]) -> bool:
    try:
        step()
    except torch.OutOfMemoryError:
        return False
    finally:
        if setup.device != "cpu":
            torch.cuda.empty_cache()
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
    times = dict(zip(steps, setup.seconds(*steps.values()), strict=True))
    peaks = {variant: setup.peak(step) for variant, step in steps.items()}
    where = f"{ready.size} samples of {ready.batch['input_ids'].shape[1]} tokens at most"
    yield Figure(f"{name}.lm.seconds", times["lm"], "s", f"L_lm alone, {where}")
    yield Figure(f"{name}.lm.peak", peaks["lm"] / 2**30, "GiB", "the same; weights included")
    for variant in ("sea", "basic", "both"):
        said = f"a step of L_lm alone, {times['lm']:.3f} s; {times[variant]:.3f} s, {where}"
        yield Figure(f"{name}.{variant}.time_ratio", times[variant] / times["lm"], "x", said)
        said = f"a step of L_lm alone, {peaks['lm'] / 2**30:.1f} GiB; {peaks[variant] / 2**30:.1f} GiB"
        yield Figure(f"{name}.{variant}.memory_ratio", peaks[variant] / peaks["lm"], "x", said)


def _naive(setup: Setup, name: str, ready: _Ready, shape: Shape) -> Iterator[Figure]:
    """Beside ours with the same terms, at the largest batch at which the naive step fits."""
    size = ready.size
    while size:
        smaller = ready if size == ready.size else _Ready(ready.trainer, batch_of(shape, size, setup.device), size)
        ours, naive = _step(smaller, "both"), naive_step(ready.trainer, smaller.batch)
        if _fits(setup, naive):
            break
        yield Figure(f"{name}.naive.batch_{size}", float("nan"), "x", "naive does not fit at this batch; ours does")
        size //= 2
    else:
        return
    (fast, slow), small, large = setup.seconds(ours, naive, repeats=3), setup.peak(ours), setup.peak(naive)
    said = "eager attentions and hidden states of all layers, both distributions in full"
    yield Figure(f"{name}.naive.time_ratio", slow / fast, "x", f"ours, {fast:.3f} s at {size} samples; naive: {said}")
    said = f"ours, {small / 2**30:.1f} GiB at {size} samples; naive {large / 2**30:.1f} GiB"
    yield Figure(f"{name}.naive.memory_ratio", large / small, "x", said)


def _kernels(setup: Setup, ready: _Ready) -> Iterator[Figure]:
    """The kernels' time in a step with all terms: by part of the forward, and by kernel, the largest first."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if setup.device != "cpu" else []
    step, field = _step(ready, "both"), "device_time_total" if setup.device != "cpu" else "cpu_time_total"
    with _marked(), torch.profiler.profile(activities=kinds) as profile:
        step()
        if setup.device != "cpu":
            torch.cuda.synchronize()
    events = [event for event in profile.events() if str(event.device_type).endswith("CPU")]
    kernels = sorted(profile.key_averages(), key=lambda each: -getattr(each, f"self_{field}"))
    kernels = [kernel for kernel in kernels if kernel.key not in {part for *_, part in PARTS}]
    whole = sum(getattr(kernel, f"self_{field}") for kernel in kernels) or 1
    parts = {part: sum(getattr(event, field) for event in events if event.name == part) for *_, part in PARTS}
    beside = f"of {whole / 1e6:.3f} s of kernels in a step with all terms, {ready.size} samples"
    for part, spent in sorted(parts.items(), key=lambda item: -item[1]):
        yield Figure(f"train.kernels.{part}", spent / whole, "share", beside)
    for number, kernel in enumerate(kernels[:KERNELS], 1):
        said = f"{kernel.key[:110]}, {kernel.count} calls; {beside}"
        yield Figure(f"train.kernels.{number}", getattr(kernel, f"self_{field}") / whole, "share", said)


@contextmanager
def _marked() -> Iterator[None]:
    """Names the parts to the profiler; what the backward pass does runs outside of them."""
    with ExitStack() as stack:
        for owner, name, part in PARTS:
            stack.enter_context(patch.object(owner, name, _named(getattr(owner, name), part)))
        yield


def _named(action: Callable[..., Any], part: str) -> Callable[..., Any]:
    def named(*given: Any, **options: Any) -> Any:
        with torch.profiler.record_function(part):
            return action(*given, **options)

    return named


if __name__ == "__main__":
    main(figures, __doc__)

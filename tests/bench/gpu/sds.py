"""L_sds of a stage 1 step on LLaVA-1.5-7B: time beside the floor that its products set, and peak memory.

    python -m tests.bench.gpu.sds [--tiny] [--json FILE]

m = 576 x 16 visual tokens of width 4,096 against 32,000 (Vicuna) and 128,256 (Llama 3) entries, forward and backward.
The floor is 8 m N d FLOPs (products of V and V^ with E', and of both shares with E) at the rate of a large product.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from tests.bench.gpu.common import Setup, main
from tests.bench.measure import Figure
from trainer.losses import equations

BLOCKS = (1024, 4096, 8192)


class Tokens(NamedTuple):
    """V, V^ (m, d), a (m,), E (N, d)."""

    visual: torch.Tensor
    refined: torch.Tensor
    attention: torch.Tensor
    embeddings: torch.Tensor


def figures(setup: Setup) -> Iterator[Figure]:
    """sds.N.*: for each vocabulary ours in bfloat16 and float32, blocks, a naive version, liger-kernel's."""
    rates = {dtype: setup.matmul_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    for dtype, rate in rates.items():
        yield Figure(f"matmul.{_name(dtype)}", rate / 1e12, "TFLOP/s", "a product of two square matrices")
    count, width = (24, 16) if setup.tiny else (576 * 16, 4096)
    for entries in (100, 300) if setup.tiny else (32_000, 128_256):
        yield from setup.guarded(f"sds.{entries}", _at(setup, count, entries, width, rates))


def _tokens(device: str, count: int, entries: int, width: int) -> Tokens:
    random = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, device=device)

    attention = normal(count).softmax(0)
    # Logits of a few units, as between visual tokens and an LLM's embeddings.
    return Tokens(normal(count, width), normal(count, width), attention, (3 / width**0.5) * normal(entries, width))


def _at(setup: Setup, count: int, entries: int, width: int, rates: dict[torch.dtype, float]) -> Iterator[Figure]:
    tokens = _tokens(setup.device, count, entries, width)
    size, flops = f"{count:,} tokens x {entries:,} entries x {width:,}", 8.0 * count * entries * width
    for dtype, rate in rates.items():
        tokens = tokens._replace(embeddings=tokens.embeddings.to(dtype))  # the wider E is gone when peaks are measured
        action = partial(_backward, partial(_ours, tokens), tokens.visual)
        (spent,), peak = setup.seconds(action, repeats=3), setup.peak(action)
        name = f"sds.{entries}.{_name(dtype)}"
        said = f"its floor, {1e3 * flops / rate:.1f} ms; ours {1e3 * spent:.1f} ms, {size}"
        yield Figure(f"{name}.over_floor", spent * rate / flops, "x", said)
        yield Figure(f"{name}.peak", peak / 2**30, "GiB", f"what is given included; {size}")
        yield from _beside(setup, name, tokens, spent, peak)
    for block in BLOCKS[: 1 if setup.tiny else None]:
        (spent,) = setup.seconds(partial(_backward, partial(_ours, tokens, block=block), tokens.visual), repeats=3)
        yield Figure(f"sds.{entries}.bfloat16.block_{block}", 1e3 * spent, "ms", f"blocks of other sizes; {size}")


def _beside(setup: Setup, name: str, given: Tokens, spent: float, peak: int) -> Iterator[Figure]:
    others: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"naive": partial(_naive, given)}
    if (fused := _liger(given)) is not None and setup.device != "cpu":
        others["liger_jsd"] = fused
    for other, loss in others.items():
        action, failed = partial(_backward, loss, given.visual), "it does not fit into the GPU's memory"
        try:
            measured = setup.if_fits(lambda action=action: (setup.seconds(action, repeats=3)[0], setup.peak(action)))
        except Exception as error:
            if other == "naive":
                raise
            measured, failed = None, f"it does not run here: {type(error).__name__}: {str(error)[:90]}"
        if measured is None:
            yield Figure(f"{name}.{other}.time_ratio", float("nan"), "x", failed)
            continue
        theirs, memory = measured
        said = f"ours; {1e3 * theirs:.1f} ms"
        if other == "naive":
            said += "; it takes 6 m N d FLOPs, ours 8, as it keeps m x N numbers and ours never does"
        yield Figure(f"{name}.{other}.time_ratio", theirs / spent, "x", said)
        yield Figure(f"{name}.{other}.memory_ratio", memory / peak, "x", f"ours; {memory / 2**30:.2f} GiB")


def _backward(loss: Callable[[torch.Tensor], torch.Tensor], visual: torch.Tensor) -> None:
    leaf = visual.detach().requires_grad_()
    loss(leaf).backward()
    leaf.grad = None


def _ours(given: Tokens, visual: torch.Tensor, **options: Any) -> torch.Tensor:
    return equations.sds(visual, *given[1:], matmul_dtype=given.embeddings.dtype, **options)


def _naive(given: Tokens, visual: torch.Tensor) -> torch.Tensor:
    """Both distributions in full, by autograd."""
    dtype = given.embeddings.dtype
    p = (given.refined.to(dtype) @ given.embeddings.T).float().softmax(-1)
    log_q = (visual.to(dtype) @ given.embeddings.T).float().log_softmax(-1)
    return (given.attention * F.kl_div(log_q, p, reduction="none").sum(-1)).sum()


def _liger(given: Tokens) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Its fused divergence of two linear heads at beta = 0, KL(p || q): a plain mean over tokens, without a_i."""
    try:
        from liger_kernel.transformers import LigerFusedLinearJSD
    except ImportError:
        return None
    fused, (_, refined, _, embeddings) = LigerFusedLinearJSD(jsd_beta=0.0), given
    refined = refined.to(embeddings.dtype)
    return lambda visual: fused(visual.to(embeddings.dtype), embeddings, refined, embeddings)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main(figures, __doc__)

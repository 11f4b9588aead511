"""What every search for words that may be among the best is made of.

Shapes: P patches, W words, D embedding width.
"""

import threading
import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Protocol

import torch

from sea_pipeline.core.devices import has_onednn

GROUP = 32
"""Words whose highest score stands for all of them."""
WORDS_PER_BLOCK = 4096
_TRIED, _TRIALS = 64, 3
"""Patches that products are tried with, and how often."""
_HOPELESS = 3
"""Times the fastest so far: what takes as long is not tried again."""


class Candidates(Protocol):
    """What proposes words; on a CPU several threads may ask at once."""

    patches_per_call: int
    """P at most."""

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Proposes k words for each of the patches, float32 (P, D), with n <= k <= W.

        Returns:
            Scores float32 (P, k), highest first, within `rounding_bound` of the inner products, and ids int64 (P, k).
            A word that is not proposed has a float32 score of at most the k-th, or is surely not among the n best.
        """
        ...


def rounding_bound(width: int) -> float:
    """How far a matmul's inner product of two unit vectors may be from the true one: gamma_D (Higham, 3.1)."""
    try:
        exact = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by way of torch's newer, finer settings
        exact = False
    unit = 2.0**-24 if exact else 2.0**-8
    return 1.01 * (width + 2) * unit


class Scratch(threading.local):
    """A tensor for each thread that asks, made when it first does and kept for as long as it lives."""

    def __init__(self, make: Callable[[], torch.Tensor]) -> None:
        self._make = make

    @cached_property
    def tensor(self) -> torch.Tensor:
        """This thread's."""
        return self._make()


def _by_blas(patches: torch.Tensor, words: torch.Tensor, out: torch.Tensor) -> None:
    torch.mm(patches, words.T, out=out)


def _by_onednn(patches: torch.Tensor, words: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(torch.ops.mkldnn._linear_pointwise(patches, words, None, "none", [], ""))


def fastest_product(words: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]:
    """What writes patches @ words.T into a tensor, float32: MKL takes half of what AMD's processors can do."""
    products = {"blas": _by_blas}
    if words.device.type == "cpu" and has_onednn():
        products["oneDNN"] = _by_onednn
    block = words[:WORDS_PER_BLOCK]
    patches = words[:1].expand(_TRIED, -1).contiguous()
    out = torch.empty(_TRIED, len(block), device=words.device)
    tried = {name: partial(one, patches, block, out) for name, one in products.items()}
    return products[ranking(tried)[0]]


def best_by_groups(
    scores: torch.Tensor, maxima: torch.Tensor, members: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest of (P, words) scores and their ids int64: they are in the k groups of the highest maxima.

    `maxima` (P, G) are those of groups of words, and `members` (G, GROUP) the ids in each.
    """
    groups = maxima.topk(min(k, maxima.shape[-1]), sorted=False).indices
    ids = members[groups].flatten(1)
    top, place = scores.gather(-1, ids).topk(k)
    return top, ids.gather(-1, place)


def ranking(actions: Mapping[str, Callable[[], object]]) -> list[str]:
    """The names of actions, the fastest first, by a few calls of each; a single one is not called."""
    if len(actions) == 1:
        return list(actions)
    clock = time.perf_counter if torch.get_num_threads() > 1 else time.thread_time  # other threads may be at work
    least: dict[str, float] = {}
    for name, action in actions.items():
        spent = []
        for _ in range(_TRIALS):  # the first call also starts what computes
            began = clock()
            action()
            spent.append(clock() - began)
            if least and spent[-1] > _HOPELESS * min(least.values()) and len(spent) > 1:
                break
        least[name] = min(spent)
    return sorted(least, key=lambda name: least[name])

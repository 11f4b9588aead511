"""Define what every search for candidate words shares.

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
"""Words of a group, whose highest score bounds the scores of all of them."""
WORDS_PER_BLOCK = 4096
_TRIED, _TRIALS = 64, 3
"""The patches with which products are timed, and the number of trials."""
_HOPELESS = 3
"""An action that takes this many times as long as the fastest so far is not tried again."""


class Candidates(Protocol):
    """Proposes words for patches. On a CPU several threads may ask at once."""

    patches_per_call: int
    """The largest P of a call."""

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Propose k words for each of the patches, float32 (P, D), with n <= k <= W.

        Returns:
            Scores float32 (P, k), highest first, within `rounding_bound` of the inner products, and ids int64 (P, k).
            A word that is not proposed has a float32 score of at most the k-th, or is surely not among the n best.
        """
        ...


def rounding_bound(width: int) -> float:
    """Bound the rounding error of a matmul's inner product of two unit vectors, as gamma_D in Higham (3.1)."""
    try:
        exact = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch refuses to answer if its newer, finer settings were used
        exact = False
    # gamma_D = D u / (1 - D u), with a little room. The unit u is float32's, or bfloat16's if torch may use less than
    # float32 for products (TF32 is finer than bfloat16).
    unit = 2.0**-24 if exact else 2.0**-8
    return 1.01 * (width + 2) * unit


class Scratch(threading.local):
    """A tensor for each thread that asks. It is made at the thread's first use and kept as long as the thread lives."""

    def __init__(self, make: Callable[[], torch.Tensor]) -> None:
        self._make = make

    @cached_property
    def tensor(self) -> torch.Tensor:
        """Return this thread's tensor."""
        return self._make()


def _by_blas(patches: torch.Tensor, words: torch.Tensor, out: torch.Tensor) -> None:
    torch.mm(patches, words.T, out=out)


def _by_onednn(patches: torch.Tensor, words: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(torch.ops.mkldnn._linear_pointwise(patches, words, None, "none", [], ""))


def fastest_product(words: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]:
    """Choose the fastest function that writes patches @ words.T into a tensor, float32.

    On AMD's processors MKL reaches about half of the possible speed, so oneDNN is tried, too.
    """
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
    """Find the k highest of (P, words) scores and their ids, int64, by way of the maxima of groups of words.

    They all lie in the k groups of the highest maxima. Proof: a word outside of these groups is at most its group's
    maximum, and k words, the maxima of the k groups, are at least that.

    Args:
        scores: (P, words).
        maxima: (P, G), the highest score in each group.
        members: (G, GROUP), the ids of the words in each group.
        k: how many to find.
    """
    groups = maxima.topk(min(k, maxima.shape[-1]), sorted=False).indices
    ids = members[groups].flatten(1)
    top, position = scores.gather(-1, ids).topk(k)
    return top, ids.gather(-1, position)


def ranking(actions: Mapping[str, Callable[[], object]]) -> list[str]:
    """Rank actions by their time, the fastest first, from a few calls of each.

    A single action is not called.
    """
    if len(actions) == 1:
        return list(actions)
    # With one thread its own CPU time is measured, because other threads may be working at the same time.
    clock = time.perf_counter if torch.get_num_threads() > 1 else time.thread_time
    least: dict[str, float] = {}
    for name, action in actions.items():
        spent = []
        for _ in range(_TRIALS):  # the first call is slower, because it also starts the library
            began = clock()
            action()
            spent.append(clock() - began)
            if least and spent[-1] > _HOPELESS * min(least.values()) and len(spent) > 1:
                break
        least[name] = min(spent)
    return sorted(least, key=lambda name: least[name])

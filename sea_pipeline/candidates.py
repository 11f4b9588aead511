"""Words that may be among the best, by float32 scores: FAISS or torch, on CPU or CUDA.

Shapes: P patches, W words, D embedding width.
"""

import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import torch

from sea_pipeline.errors import UserError
from sea_pipeline.optional import require

GROUP = 32
"""Words whose highest score stands for all of them."""
WORDS_PER_BLOCK = 4096
_TRIED, _TRIALS = 64, 3
"""Patches of a trial, more than the 20 from which on FAISS multiplies matrices; and how often they are asked for."""


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


class TorchCandidates:
    """Blocked matmul, then top k through the maxima of groups of words: one pass less over W scores than topk."""

    def __init__(self, words: torch.Tensor) -> None:
        padded = -(-len(words) // GROUP) * GROUP
        self._words = words
        self._members = torch.arange(padded, device=words.device).view(-1, GROUP)  # neighbours
        self.patches_per_call = 4096 if words.device.type == "cuda" else 512
        self._scratch = Scratch(lambda: torch.full((self.patches_per_call, padded), -torch.inf, device=words.device))

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Candidates`."""
        scores = self._scratch.tensor[: len(patches)]
        maxima = []
        for start in range(0, len(self._words), WORDS_PER_BLOCK):
            block = self._words[start : start + WORDS_PER_BLOCK]
            torch.mm(patches, block.T, out=scores[:, start : start + len(block)])
            chunk = scores[:, start : start + WORDS_PER_BLOCK].view(len(scores), -1, GROUP)
            maxima.append(chunk.amax(-1))  # while a cache holds them
        return best_by_groups(scores, torch.cat(maxima, -1), self._members, k)


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


class FaissCandidates:
    """FAISS's flat inner-product index; on the GPU where the words are there and FAISS can reach it."""

    patches_per_call = 4096

    def __init__(self, words: torch.Tensor) -> None:
        faiss: Any = require("faiss", "cpu")
        self._faiss, self._device = faiss, words.device
        # From 1.15 FAISS multiplies matrices only past 128,000 numbers a call; below that it is ten times slower.
        faiss.cvar.distance_compute_blas_threshold = 20
        self._index = faiss.IndexFlatIP(words.shape[-1])
        self._index.add(words.cpu().numpy())
        if words.device.type == "cuda":
            # Ask first: touching GPU resources without a GPU aborts the process instead of raising.
            if not hasattr(faiss, "get_num_gpus") or not faiss.get_num_gpus():
                raise UserError(
                    "--search faiss --device cuda: the installed FAISS sees no GPU; "
                    "pip uninstall faiss-cpu and pip install 'sea-pipeline[gpu]', or use --search torch"
                )
            self._resources = faiss.StandardGpuResources()
            self._index = faiss.index_cpu_to_gpu(self._resources, words.device.index or 0, self._index)

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Candidates`."""
        if self._device.type == "cpu":
            self._faiss.omp_set_num_threads(torch.get_num_threads())  # it has an OpenMP of its own
        scores, ids = self._index.search(patches.cpu().numpy(), k)
        return torch.from_numpy(scores).to(self._device), torch.from_numpy(ids).to(self._device)


def float32_candidates(words: torch.Tensor) -> tuple[str, Candidates]:
    """The faster of FAISS, if it is installed, and torch for words on a CPU, by a trial: `faiss` or `torch`, and it.

    Their products come from libraries of their own, and which is faster depends on the processor: FAISS was measured at
    0.6 to 2.2 times torch's speed on one machine, by what its library took that for.
    """
    found: dict[str, Candidates] = {"torch": TorchCandidates(words)}
    if faiss_is_there():
        found["faiss"] = FaissCandidates(words)
    patches = words[:1].expand(_TRIED, -1).contiguous()
    seconds = {name: _seconds(one, patches) for name, one in found.items() if len(found) > 1}
    name = min(found, key=lambda each: seconds.get(each, 0.0))
    return name, found[name]


def _seconds(candidates: Candidates, patches: torch.Tensor) -> float:
    """The least of a few calls; the first one also starts what computes."""
    spent = []
    for _ in range(_TRIALS):
        began = time.perf_counter()
        candidates(patches, 1, 1)
        spent.append(time.perf_counter() - began)
    return min(spent)


def faiss_is_there() -> bool:
    """Whether FAISS is installed."""
    try:
        require("faiss", "cpu")
    except UserError:
        return False
    return True

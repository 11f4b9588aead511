"""Proposes words by float32 scores: FAISS or torch, on CPU or CUDA.

Shapes: P patches, W words, D embedding width.
"""

from typing import Any

import torch

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import require
from sea_pipeline.search.candidates import GROUP, WORDS_PER_BLOCK, Scratch, best_by_groups, fastest_product


class TorchCandidates:
    """Blocked matmul, then top k through the maxima of groups of words: one pass less over W scores than topk."""

    def __init__(self, words: torch.Tensor) -> None:
        padded = -(-len(words) // GROUP) * GROUP
        self._words = words
        self._multiply = fastest_product(words)
        self._members = torch.arange(padded, device=words.device).view(-1, GROUP)  # neighbours
        self.patches_per_call = 4096 if words.device.type == "cuda" else 512
        self._scratch = Scratch(lambda: torch.full((self.patches_per_call, padded), -torch.inf, device=words.device))

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Candidates`."""
        scores = self._scratch.tensor[: len(patches)]
        maxima = []
        for start in range(0, len(self._words), WORDS_PER_BLOCK):
            block = self._words[start : start + WORDS_PER_BLOCK]
            self._multiply(patches, block, scores[:, start : start + len(block)])
            chunk = scores[:, start : start + WORDS_PER_BLOCK].view(len(scores), -1, GROUP)
            maxima.append(chunk.amax(-1))  # while a cache holds them
        return best_by_groups(scores, torch.cat(maxima, -1), self._members, k)


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


def faiss_is_there() -> bool:
    """Whether FAISS is installed."""
    try:
        require("faiss", "cpu")
    except UserError:
        return False
    return True

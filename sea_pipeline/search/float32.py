"""Propose words by float32 scores of all words, with FAISS or torch, on CPU or CUDA.

Shapes: P patches, W words, D embedding width.
"""

from typing import Any

import torch

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import install_line, require
from sea_pipeline.search.candidates import GROUP, WORDS_PER_BLOCK, Scratch, best_by_groups, fastest_product


class TorchCandidates:
    """Multiplies in blocks, then finds the top k through the maxima of groups of words.

    That reads the W scores once less than torch's topk does.
    """

    def __init__(self, words: torch.Tensor) -> None:
        padded = -(-len(words) // GROUP) * GROUP
        self._words = words
        self._multiply = fastest_product(words)
        self._members = torch.arange(padded, device=words.device).view(-1, GROUP)  # a group is 32 neighbouring words
        self.patches_per_call = 4096 if words.device.type == "cuda" else 512
        self._scratch = Scratch(lambda: torch.full((self.patches_per_call, padded), -torch.inf, device=words.device))

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Candidates`."""
        scores = self._scratch.tensor[: len(patches)]
        maxima = []
        for start in range(0, len(self._words), WORDS_PER_BLOCK):
            block = self._words[start : start + WORDS_PER_BLOCK]
            self._multiply(patches, block, scores[:, start : start + len(block)])
            # The last block's view includes the padding, which stays -inf.
            chunk = scores[:, start : start + WORDS_PER_BLOCK].view(len(scores), -1, GROUP)
            maxima.append(chunk.amax(-1))  # now, while the block's scores are in the cache
        return best_by_groups(scores, torch.cat(maxima, -1), self._members, k)


class FaissCandidates:
    """FAISS's flat inner-product index, on the GPU if the words are there and FAISS can reach it."""

    patches_per_call = 4096

    def __init__(self, words: torch.Tensor) -> None:
        faiss: Any = require("faiss", "cpu")
        self._faiss, self._device = faiss, words.device
        # Since 1.15 FAISS uses BLAS only above 128,000 numbers a call, and is ten times slower below that.
        faiss.cvar.distance_compute_blas_threshold = 20
        self._index = faiss.IndexFlatIP(words.shape[-1])
        self._index.add(words.cpu().numpy())
        if words.device.type == "cuda":
            # Ask first, because using GPU resources without a GPU aborts the process instead of raising.
            if not hasattr(faiss, "get_num_gpus") or not faiss.get_num_gpus():
                raise UserError(
                    "--search faiss --device cuda: the installed FAISS sees no GPU; "
                    f"pip uninstall faiss-cpu and {install_line('gpu')}, or use --search torch"
                )
            self._resources = faiss.StandardGpuResources()
            self._index = faiss.index_cpu_to_gpu(self._resources, words.device.index or 0, self._index)

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Candidates`."""
        if self._device.type == "cpu":
            self._faiss.omp_set_num_threads(torch.get_num_threads())  # FAISS has an OpenMP of its own
        scores, ids = self._index.search(patches.cpu().numpy(), k)
        return torch.from_numpy(scores).to(self._device), torch.from_numpy(ids).to(self._device)


def faiss_is_there() -> bool:
    """Tell whether FAISS is installed and loads."""
    try:
        require("faiss", "cpu")
    except UserError:
        return False
    return True

"""Exact top-n words by cosine (SEA Eq. 6), with FAISS or torch, on CPU or CUDA.

Every backend proposes n + `MARGIN` candidates by float32 scores. The candidates are scored again in float64, and the
distance between the n-th of them and the last proposal proves, for each patch, that no word was missed; where it does
not, all words are scored in float64. So the answer is that of float64 whatever the backend: ties by lower word id.

Shapes: P patches, W words, D embedding width, n labels a patch.
"""

from typing import Any, Literal, Protocol

import torch

from sea_pipeline.errors import UserError
from sea_pipeline.optional import require

Backend = Literal["auto", "faiss", "torch"]
"""What proposes candidates."""
MARGIN = 8
_CANDIDATE_NUMBERS = 1 << 21
"""Float64 numbers of candidate vectors at a time: 16 MiB."""
_WORDS_PER_BLOCK = 4096
_WORDS_PER_GROUP = 32


class _Candidates(Protocol):
    patches_per_call: int
    """P at most."""

    def __call__(self, patches: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k words of highest float32 inner product: scores and ids (P, k), in any order."""
        ...


class WordSearch:
    """Finds the n words most similar to each patch among W fixed words.

    Args:
        words: float32 (W, D), unit length.
        top_n: n.
        sign: s = sign * cos.
        backend: auto takes torch on CUDA, FAISS on a CPU where it is installed, else torch.
        device: where the torch backend and the float64 scoring run, and FAISS where its GPU wheel is installed.

    Raises:
        ValueError: n is not within 1..W.
        UserError: FAISS is asked for and cannot be had.
    """

    def __init__(
        self, words: torch.Tensor, *, top_n: int, sign: int, backend: Backend = "auto", device: str = "cpu"
    ) -> None:
        if not 1 <= top_n <= len(words):
            raise ValueError(f"top_n = {top_n}: expected between 1 and {len(words):,}, the number of words")
        self._device = torch.device(device)
        self._words = words.to(self._device, torch.float32).contiguous()
        self._top_n = top_n
        self._sign = sign
        candidates = (top_n + MARGIN) * self._words.shape[-1]
        self._chunk = max(1, _CANDIDATE_NUMBERS // candidates)
        self.backend = _resolve(backend, self._device)
        proposer = FaissCandidates if self.backend == "faiss" else TorchCandidates
        self._candidates: _Candidates = proposer(self._words)
        self.fallbacks = 0
        """Patches so far whose answer needed float64 scores of all words."""

    @torch.inference_mode()
    def __call__(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The labels of patches, float32 (P, D) of unit length: word ids int32 (P, n) and s float64 (P, n), on the CPU.

        Best first. Words with s < 0 are no labels (SEA section 4.1): their ids are -1 and their scores 0.
        """
        queries = patches.to(self._device, torch.float32) * self._sign
        k = min(self._top_n + MARGIN, len(self._words))
        parts = []
        for chunk in torch.split(queries, self._candidates.patches_per_call):
            proposals = zip(
                *(torch.split(part, self._chunk) for part in (chunk, *self._candidates(chunk, k))), strict=True
            )
            parts += [self._exact(*proposal) for proposal in proposals]
        if not parts:
            return torch.empty(0, self._top_n, dtype=torch.int32), torch.empty(0, self._top_n, dtype=torch.float64)
        scores, ids = (torch.cat(part) for part in zip(*parts, strict=True))
        ids[scores < 0] = -1
        return ids.to("cpu", torch.int32), scores.clamp_min_(0).cpu()

    def _exact(
        self, queries: torch.Tensor, coarse: torch.Tensor, proposed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best n of the proposed words by float64 scores, or of all words where it is not proved that they are."""
        proposed = proposed.sort(-1).values
        scores, order = _score(queries, self._words[proposed]).sort(dim=-1, descending=True, stable=True)
        scores, ids = scores[:, : self._top_n], proposed.gather(-1, order)[:, : self._top_n]
        if proposed.shape[-1] < len(self._words):
            # A word that was not proposed scores at most the worst proposal, plus the rounding of a float32 product.
            unproved = ~(scores[:, -1] > coarse.amin(-1) + _rounding_bound(self._words.shape[-1]))
            for row in unproved.nonzero()[:, 0].tolist():
                scores[row], ids[row] = self._exhaustive(queries[row])
                self.fallbacks += 1
        return scores, ids

    def _exhaustive(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = [_score(query[None], block[None])[0] for block in torch.split(self._words, _WORDS_PER_BLOCK)]
        scores, order = torch.cat(blocks).sort(dim=0, descending=True, stable=True)
        return scores[: self._top_n], order[: self._top_n]


def _score(queries: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """float64 inner products of (P, D) with (P, k, D): (P, k). Equal vectors give equal bits, unlike in a matmul."""
    return (words.double() * queries.double().unsqueeze(-2)).sum(-1)


def _rounding_bound(width: int) -> float:
    """How far a matmul's inner product of two unit vectors may be from the true one: gamma_D (Higham, 3.1)."""
    try:
        exact = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by way of torch's newer, finer settings
        exact = False
    unit = 2.0**-24 if exact else 2.0**-8
    return 1.01 * (width + 2) * unit


class TorchCandidates:
    """Blocked matmul, then top k through the maxima of groups of words: one pass less over W scores than topk."""

    def __init__(self, words: torch.Tensor) -> None:
        padded = -(-len(words) // _WORDS_PER_GROUP) * _WORDS_PER_GROUP
        self._words = words
        self.patches_per_call = 4096 if words.device.type == "cuda" else 512
        self._scores = torch.full((self.patches_per_call, padded), -torch.inf, device=words.device)
        self._in_group = torch.arange(_WORDS_PER_GROUP, device=words.device)

    def __call__(self, patches: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `_Candidates`."""
        scores = self._scores[: len(patches)]
        maxima = []
        for start in range(0, len(self._words), _WORDS_PER_BLOCK):
            block = self._words[start : start + _WORDS_PER_BLOCK]
            torch.mm(patches, block.T, out=scores[:, start : start + len(block)])
            groups = scores[:, start : start + _WORDS_PER_BLOCK].view(len(patches), -1, _WORDS_PER_GROUP)
            maxima.append(groups.amax(-1))
        # The k best words are in the k groups of highest maxima.
        best = torch.cat(maxima, -1)
        groups = best.topk(min(k, best.shape[-1]), sorted=False).indices
        ids = (groups.unsqueeze(-1) * _WORDS_PER_GROUP + self._in_group).flatten(1)
        top, place = scores.gather(-1, ids).topk(k, sorted=False)
        return top, ids.gather(-1, place)


class FaissCandidates:
    """FAISS's flat inner-product index; on the GPU where the words are there and FAISS can reach it."""

    patches_per_call = 4096

    def __init__(self, words: torch.Tensor) -> None:
        faiss: Any = require("faiss", "cpu")
        self._device = words.device
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

    def __call__(self, patches: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `_Candidates`."""
        scores, ids = self._index.search(patches.cpu().numpy(), k)
        return torch.from_numpy(scores).to(self._device), torch.from_numpy(ids).to(self._device)


def _resolve(backend: Backend, device: torch.device) -> Backend:
    if backend != "auto":
        return backend
    if device.type == "cuda":
        return "torch"
    try:
        require("faiss", "cpu")
    except UserError:
        return "torch"
    return "faiss"

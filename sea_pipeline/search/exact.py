"""Find the exact top-n words by cosine (SEA Eq. 6), with FAISS or torch, on CPU or CUDA.

Every backend proposes n + `MARGIN` words. The best n of them are scored again in float64. For each patch, the distance
between the n-th of these and the next proposal proves that no word was missed. If it does not, all proposals of the
patch are scored in float64. If the last of them does not prove it either, all words are. So the answer is that of
float64 whatever the backend, to the byte; ties go to the lower word id.

Shapes: P patches, W words, D embedding width, n labels a patch.
"""

from collections.abc import Callable

import torch

from sea_pipeline.core.devices import exact_float32
from sea_pipeline.search import Backend as Backend
from sea_pipeline.search.candidates import Candidates, rounding_bound
from sea_pipeline.search.fastest import FastestCandidates
from sea_pipeline.search.float16 import HalfCandidates
from sea_pipeline.search.float32 import FaissCandidates, TorchCandidates
from sea_pipeline.search.int8 import Int8Candidates

MARGIN = 8
_CANDIDATE_NUMBERS = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Float64 numbers of candidate vectors at a time: 1 MiB, which fits a core's cache; 128 MiB, to launch few kernels."""
_WORDS_PER_BLOCK = 4096


class WordSearch:
    """Finds the n words most similar to each patch among W fixed words.

    Args:
        words: float32 (W, D), unit length.
        top_n: n.
        sign: s = sign * cos.
        backend: what proposes candidates.
            int8: scores of all words in int8 with a bound on their error, then float32 scores of the few that remain.
            faiss: FAISS's flat index, float32.
            torch: float32 scores of all words; on CUDA first float16 ones with a bound on their error.
            auto: on a CPU the fastest of them for these vectors, int8 only if it has instructions for it; see
                `fastest.py`. On CUDA torch.
        device: where the torch backend and the float64 scoring run, and FAISS if its GPU wheel is installed.

    Raises:
        ValueError: n is not within 1..W.
        UserError: FAISS or int8 is asked for and not available.
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
        if backend == "auto" and self._device.type == "cuda":
            backend = "torch"
        self._backend = backend
        self._candidates = _PROPOSERS[backend](self._words)
        self.fallbacks = 0
        """The number of patches so far whose answer needed float64 scores of all words."""

    @property
    def backend(self) -> str:
        """Return the name of what proposes candidates.

        It is `auto` until the fastest is known.
        """
        if isinstance(self._candidates, FastestCandidates) and self._candidates.names:
            return self._candidates.names[0]
        return self._backend

    @exact_float32()
    @torch.inference_mode()
    def __call__(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Label patches, float32 (P, D) of unit length.

        Returns:
            Word ids int32 (P, n) and s float64 (P, n), on the CPU, best first. Words with s < 0 are no labels (SEA
            section 4.1), so their ids are -1 and their scores 0. A patch of length 0 is like no word, so it has none.
        """
        # s = sign * cos, so the sign goes into the patch and the search is for the highest products.
        queries = patches.to(self._device, torch.float32) * self._sign
        k = min(self._top_n + MARGIN, len(self._words))
        calls = -(-len(queries) // self._candidates.patches_per_call)
        parts = []
        for chunk in queries.chunk(calls) if calls else ():
            parts.append(self._exact(chunk, *self._candidates(chunk, self._top_n, k)))
        if not parts:
            return torch.empty(0, self._top_n, dtype=torch.int32), torch.empty(0, self._top_n, dtype=torch.float64)
        scores, ids = (torch.cat(part) for part in zip(*parts, strict=True))
        # Words with s < 0 are no labels. A patch of length 0 has no cosine with any word.
        ids[(scores < 0) | ~queries.any(-1, keepdim=True)] = -1
        return ids.to("cpu", torch.int32), scores.clamp_min_(0).cpu()

    def _exact(
        self, queries: torch.Tensor, coarse: torch.Tensor, proposed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best n words by float64 scores.

        They are chosen from the first n proposals, from all of them, or from all words, whichever is proved to suffice.
        """
        # Step 1: score the first n proposals in float64.
        n = self._top_n
        scores, ids = self._ranked(queries, proposed[:, :n])
        if n == len(self._words):
            return scores, ids
        # A word outside of the first n has at most the float32 score of proposal n + 1, plus the rounding of a product.
        # If the n-th float64 score is above that, no word was missed. `~(a > b)` also catches NaN.
        slack = rounding_bound(self._words.shape[-1])
        rows = (~(scores[:, -1] > coarse[:, n] + slack)).nonzero()[:, 0]
        # Step 2: for the other patches, score all k proposals in float64.
        scores[rows], ids[rows] = self._ranked(queries[rows], proposed[rows])
        if proposed.shape[-1] < len(self._words):
            # A word that was not proposed has at most the k-th float32 score, plus the rounding.
            unproved = ~(scores[rows, -1] > coarse[rows, -1] + slack)
            # Step 3: for patches that this does not prove either, score all words.
            for row in rows[unproved].tolist():
                scores[row], ids[row] = self._exhaustive(queries[row])
                self.fallbacks += 1
        return scores, ids

    def _ranked(self, queries: torch.Tensor, proposed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best n of (P, k) words by float64 scores."""
        # In the order of their ids, so that the stable sort below gives ties to the lower id.
        proposed = proposed.sort(-1).values
        chunk = max(1, _CANDIDATE_NUMBERS[self._device.type] // (proposed.shape[-1] * self._words.shape[-1]))
        pairs = zip(torch.split(queries, chunk), torch.split(proposed, chunk), strict=True)
        scores = torch.cat([_score(part, self._words[ids]) for part, ids in pairs])
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        return scores[:, : self._top_n], proposed.gather(-1, order)[:, : self._top_n]

    def _exhaustive(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best n of all words for one patch, by float64 scores."""
        blocks = [_score(query[None], block[None])[0] for block in torch.split(self._words, _WORDS_PER_BLOCK)]
        scores, order = torch.cat(blocks).sort(dim=0, descending=True, stable=True)
        return scores[: self._top_n], order[: self._top_n]


def _score(queries: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Compute the float64 inner products of (P, D) with (P, k, D), as (P, k).

    Equal vectors give equal bits, which a matmul does not guarantee.
    """
    return (words * queries.double().unsqueeze(-2)).sum(-1)


_PROPOSERS: dict[str, Callable[[torch.Tensor], Candidates]] = {
    "auto": FastestCandidates,
    "int8": Int8Candidates,
    "faiss": FaissCandidates,
    "torch": lambda words: (HalfCandidates if words.is_cuda else TorchCandidates)(words),
}

"""Propose words on GPUs by float16 scores of all words with a bound on their error.

A GPU's matrix units multiply float16 an order of magnitude faster than its other units multiply float32. With p' and w'
a patch and a word rounded to float16,

    p·w = p'·w' + error,   |error| <= |p - p'||w| + |p'||w - w'| + the rounding of the product

The k best are scored again in float32. If the n-th best of these is above the last float16 score plus the bound, no
word was missed. The other patches get float32 scores of all words.

Shapes: P patches, W words, D embedding width.
"""

from functools import cached_property

import torch

from sea_pipeline.core.devices import exact_float32
from sea_pipeline.search.candidates import GROUP, Candidates, Scratch, best_by_groups, rounding_bound
from sea_pipeline.search.float32 import TorchCandidates

_NUMBERS = 1 << 27
"""Numbers of float32 word vectors at a time, 512 MiB."""
_HALF = 2.0**-11
"""The largest relative error of rounding to float16; near 0 the absolute error is at most this times 2^-14."""


class HalfCandidates:
    """Proposes words by float16 scores, see the top of this file. Vectors are of unit length."""

    patches_per_call = 8192

    def __init__(self, words: torch.Tensor) -> None:
        self._words, self._half = words, words.half()
        # The bound's terms of the words: the largest |w'| and the largest |w - w'|.
        rounded = self._half.float()
        self._longest, self._lost = float(rounded.norm(dim=-1).max()), float((words - rounded).norm(dim=-1).max())
        padded = -(-len(words) // GROUP) * GROUP
        shape = (self.patches_per_call, padded)
        self._scratch = Scratch(lambda: torch.full(shape, -torch.inf, dtype=torch.half, device=words.device))
        # A group is every G-th word, so that neighbouring threads of a GPU read neighbouring scores for the G maxima.
        self._members = torch.arange(padded, device=words.device).view(GROUP, -1).T.contiguous()
        self.doubtful = 0
        """The number of patches so far that got float32 scores of all words."""

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Candidates`."""
        # Step 1: p'·w' for all words. Columns beyond W stay -inf.
        half = patches.half()
        scores = self._scratch.tensor[: len(patches)]
        with exact_float32():
            torch.mm(half, self._half.T, out=scores[:, : len(self._words)])
        # Step 2: the k highest of them.
        maxima = scores.view(len(scores), GROUP, -1).amax(1)
        coarse, proposed = best_by_groups(scores, maxima, self._members, k)
        # Step 3: p·w of these k in float32, in chunks, because each patch gathers k word vectors.
        chunk = max(1, _NUMBERS // (k * patches.shape[-1]))
        pairs = zip(torch.split(patches, chunk), torch.split(proposed, chunk), strict=True)
        exact = torch.cat([(self._words[ids] @ part.unsqueeze(-1)).squeeze(-1) for part, ids in pairs])
        best, order = exact.sort(descending=True)
        ids = proposed.gather(-1, order)
        # Step 4: a word that is not among the k has at most the k-th float16 score, so its p·w is at most `limit`. The
        # proposals are proved if their n-th best float32 score, less its own rounding, is above that.
        if k < len(self._words):
            limit = coarse[:, -1].float() + self._error(patches, half, coarse[:, -1].float())
            doubtful = ~(best[:, n - 1] - rounding_bound(patches.shape[-1]) > limit)
            if some := int(doubtful.sum()):
                best[doubtful], ids[doubtful] = self._in_float32(patches[doubtful], n, k)
                self.doubtful += some
        return best, ids

    def _error(self, patches: torch.Tensor, half: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Bound p·w - p'·w' of a word whose float16 score is at most `last`, (P,)."""
        rounded, width = half.float(), patches.shape[-1]
        lost, length = (patches - rounded).norm(dim=-1), rounded.norm(dim=-1)
        # The rounding of float32 sums of D products, four times, because matrix units may truncate instead of rounding.
        sums = 4 * 1.01 * (width + 2) * 2.0**-24 * length * self._longest
        # |p - p'||w| + |p'||w - w'|, with |w| <= |w'| + |w - w'| and the words' largest values.
        of_vectors = lost * (self._longest + self._lost) + length * self._lost
        # The last term is the rounding of the sum to float16.
        error: torch.Tensor = 1.01 * (of_vectors + sums + _HALF * (last.abs() + 2.0**-14))
        return error

    @cached_property
    def _in_float32(self) -> Candidates:
        return TorchCandidates(self._words)

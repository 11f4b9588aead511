"""Words that may be among the best, by float16 scores of all words with a bound on their error: for GPUs.

Their matrix units multiply float16 an order of magnitude faster than the rest of them float32. With p' and w' a patch
and a word rounded to float16,

    p·w = p'·w' + error,   |error| <= |p - p'||w| + |p'||w - w'| + what the product rounds

The k best are scored again in float32. Where the n-th best of these is above the last float16 score plus the bound, no
word was missed; other patches get float32 scores of all words.

Shapes: P patches, W words, D embedding width.
"""

from functools import cached_property

import torch

from sea_pipeline.core.devices import exact_float32
from sea_pipeline.search.candidates import GROUP, Candidates, Scratch, best_by_groups, rounding_bound
from sea_pipeline.search.float32 import TorchCandidates

_NUMBERS = 1 << 27
"""Of float32 word vectors at a time: 512 MiB."""
_HALF = 2.0**-11
"""Of a number that is rounded to float16, the error at most; and of numbers near 0 this much times 2^-14."""


class HalfCandidates:
    """See the top of this file; vectors are of unit length."""

    patches_per_call = 8192

    def __init__(self, words: torch.Tensor) -> None:
        self._words, self._half = words, words.half()
        rounded = self._half.float()
        self._longest, self._lost = float(rounded.norm(dim=-1).max()), float((words - rounded).norm(dim=-1).max())
        padded = -(-len(words) // GROUP) * GROUP
        shape = (self.patches_per_call, padded)
        self._scratch = Scratch(lambda: torch.full(shape, -torch.inf, dtype=torch.half, device=words.device))
        # Every G-th word, so that a GPU's threads that are neighbours read neighbours for the maxima of G groups.
        self._members = torch.arange(padded, device=words.device).view(GROUP, -1).T.contiguous()
        self.doubtful = 0
        """Patches so far that got float32 scores of all words."""

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Candidates`."""
        half = patches.half()
        scores = self._scratch.tensor[: len(patches)]
        with exact_float32():
            torch.mm(half, self._half.T, out=scores[:, : len(self._words)])
        maxima = scores.view(len(scores), GROUP, -1).amax(1)
        coarse, proposed = best_by_groups(scores, maxima, self._members, k)
        chunk = max(1, _NUMBERS // (k * patches.shape[-1]))
        pairs = zip(torch.split(patches, chunk), torch.split(proposed, chunk), strict=True)
        exact = torch.cat([(self._words[ids] @ part.unsqueeze(-1)).squeeze(-1) for part, ids in pairs])
        best, order = exact.sort(descending=True)
        ids = proposed.gather(-1, order)
        if k < len(self._words):
            limit = coarse[:, -1].float() + self._error(patches, half, coarse[:, -1].float())
            doubtful = ~(best[:, n - 1] - rounding_bound(patches.shape[-1]) > limit)
            if some := int(doubtful.sum()):
                best[doubtful], ids[doubtful] = self._in_float32(patches[doubtful], n, k)
                self.doubtful += some
        return best, ids

    def _error(self, patches: torch.Tensor, half: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """How far a word whose float16 score is at most `last`, (P,), may be above it."""
        rounded, width = half.float(), patches.shape[-1]
        lost, length = (patches - rounded).norm(dim=-1), rounded.norm(dim=-1)
        # Four times the rounding of float32 sums: matrix units may cut off where others round.
        sums = 4 * 1.01 * (width + 2) * 2.0**-24 * length * self._longest
        of_vectors = lost * (self._longest + self._lost) + length * self._lost
        error: torch.Tensor = 1.01 * (of_vectors + sums + _HALF * (last.abs() + 2.0**-14))
        return error

    @cached_property
    def _in_float32(self) -> Candidates:
        return TorchCandidates(self._words)

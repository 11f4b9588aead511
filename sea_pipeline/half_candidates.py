"""Words that may be among the best, by float16 scores of all words with a bound on their error: for GPUs.

Their matrix units multiply float16 an order of magnitude faster than the rest of them float32. With p' and w' a patch
and a word rounded to float16,

    p·w = p'·w' + error,   |error| <= |p - p'||w| + |p'||w - w'| + what the product rounds

A few more words than asked for are proposed and scored again in float32. Where the n-th best of these is above the last
float16 score plus the bound, no word was missed; other patches get float32 scores of all words.

Shapes: P patches, W words, D embedding width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch

from sea_pipeline.candidates import (
    GROUP,
    WORDS_PER_BLOCK,
    Candidates,
    TorchCandidates,
    best_by_groups,
    group_maxima,
    rounding_bound,
)

_SPARE = 8
"""Words proposed beyond k."""
_HALF = 2.0**-11
"""Of a number that is rounded to float16, the error at most; and of numbers near 0 this much times 2^-14."""


class HalfCandidates:
    """See the top of this file; vectors are of unit length."""

    patches_per_call = 4096

    def __init__(self, words: torch.Tensor) -> None:
        self._words, self._half = words, words.half()
        rounded = self._half.float()
        self._longest, self._lost = float(rounded.norm(dim=-1).max()), float((words - rounded).norm(dim=-1).max())
        padded = -(-len(words) // GROUP) * GROUP
        self._scores = torch.full((self.patches_per_call, padded), -torch.inf, dtype=torch.half, device=words.device)
        self.doubtful = 0
        """Patches so far that got float32 scores of all words."""

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Candidates`."""
        half, count = patches.half(), min(k + _SPARE, len(self._words))
        scores = self._scores[: len(patches)]
        with _sums_in_float32():
            for start in range(0, len(self._words), WORDS_PER_BLOCK):
                block = self._half[start : start + WORDS_PER_BLOCK]
                torch.mm(half, block.T, out=scores[:, start : start + len(block)])
        coarse, proposed = best_by_groups(scores, group_maxima(scores), count)
        exact = (self._words[proposed] @ patches.unsqueeze(-1)).squeeze(-1)
        best, order = exact.topk(k)
        ids = proposed.gather(-1, order)
        if count < len(self._words):
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


@contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Else CUDA may add parts of a float16 product in float16."""
    settings = torch.backends.cuda.matmul
    kept = settings.allow_fp16_reduced_precision_reduction
    settings.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        settings.allow_fp16_reduced_precision_reduction = kept

"""Words that may be among the best, by int8 scores of all words with a bound on their error.

A word w less the mean word m is g = Aᵀ(w - m) in the K principal directions A of the words that hold nearly all of
their spread, turned at random so that all K coordinates are alike, and rounded to int8; a patch p is h = Aᵀp, rounded,
too. With p' and w' what the int8 numbers stand for, and p_t and w_t what lies outside of A,

    p·w = p·m + p'·w' + error,   |error| <= |h - p'||g| + |p'||g - w'| + |p_t||w_t| + loose |p||w - m|

where `loose` covers what float32 rounds and what A lacks to orthonormal columns. The n-th best of a few float32 scores
is a threshold: only words whose int8 score plus bound reaches it can be among the n best. These are scored in float32,
the candidates of neighbouring patches in one matmul, as neighbours share most of them.

Shapes: P patches, W words, D embedding width, K principal directions, G groups of words.
"""

import threading

import torch
import torch.nn.functional as F

from sea_pipeline.candidates import (
    GROUP,
    Candidates,
    Scratch,
    TorchCandidates,
    float32_candidates,
    rounding_bound,
)
from sea_pipeline.errors import UserError

_SPREAD = 0.99
"""The share of the words' variance in the principal directions that are kept."""
_CLIP = 4.5
"""The largest int8 number, in standard deviations of a word's coordinates."""
_GROUPS_PER_BLOCK = 64
_NEIGHBOURS = 64
"""Patches whose candidates are scored together."""
_CROWDED = 1 / 4
"""The share of all groups from which on float32 scores of all words cost less."""
_LONGEST_REST = 32
"""Calls in a row at most that do without int8."""
_COLUMNS = 64
"""K is a multiple of it, or D."""
_ROWS = 32
_WORDS_PER_STEP = 4096
_TINY = 1e-15


class Int8Candidates:
    """See the top of this file.

    Raises:
        UserError: int8 products are not what they should be on this processor.
    """

    patches_per_call = 512

    def __init__(self, words: torch.Tensor) -> None:
        if not _are_right(words.device):
            raise UserError(
                f"--search int8: torch cannot multiply int8 on this {words.device.type}; use --search torch"
            )
        self._words = words
        groups = -(-len(words) // GROUP)
        blocks = -(-groups // _GROUPS_PER_BLOCK)
        self._groups = -(-groups // blocks)  # of a block; all blocks are as long
        self.crowded = 0
        """Patches so far with too many candidates, which got float32 scores of all words."""
        self._rest = self._rested = 0
        """Calls that shall do without int8, as it told nothing the last times, and those that have since."""
        self._lock = threading.Lock()
        self._all_words: Candidates | None = None

        self._mean = words.mean(0)
        self._basis = _basis(words - self._mean)
        width = self._basis.shape[-1]
        gram = self._basis.double().T @ self._basis.double()
        self._skew = float((gram - torch.eye(width, device=words.device)).norm())
        self._loose = 2 * rounding_bound(words.shape[-1]) * width**0.5 + 3 * self._skew
        some = words[:: 1 + len(words) // _WORDS_PER_STEP]
        spread = float(((some - self._mean) @ self._basis).square().mean().sqrt())
        self._step = max(_TINY, spread * _CLIP / 127)
        # A GPU multiplies multiples of 8 columns and no fewer than 17 rows.
        int8 = words.new_zeros(blocks * self._groups * GROUP, -(-width // 8) * 8, dtype=torch.int8)
        norms = words.new_zeros(len(int8), 4)
        for start in range(0, len(words), _WORDS_PER_STEP):
            part = slice(start, min(start + _WORDS_PER_STEP, len(words)))
            int8[part, :width], norms[part] = self._rounded_words(words[part])
        self._int8 = int8.view(blocks, -1, int8.shape[-1])
        self._norms = norms.view(-1, GROUP, 4).amax(1).T.contiguous()  # (4, G), as the terms of the bound
        numbers = self.patches_per_call * len(int8)
        self._scratch = Scratch(lambda: torch.empty(numbers, dtype=torch.int32, device=words.device))

    def _rounded_words(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centred, basis = words.double() - self._mean, self._basis.double()
        inside = centred @ basis
        rounded = (inside / self._step).round_().clamp_(-127, 127)
        length, kept, error = (part.norm(dim=-1) for part in (centred, inside, inside - rounded * self._step))
        outside = ((length.square() - kept.square()).clamp_min_(0) + self._skew * kept.square()).sqrt()
        norms = [kept, error, outside, self._loose * length]
        return rounded.to(torch.int8), torch.stack(norms, -1).float()

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Candidates`."""
        with self._lock:
            rests = self._rested < self._rest
            self._rested += rests
            self.crowded += len(patches) * rests
        if rests:
            return self._crowd(patches, n, k)
        int8, unit, norms = self._rounded(patches)
        products, maxima = self._products(int8)
        maxima = maxima[: len(patches)]
        places = torch.arange(len(patches), device=patches.device).unsqueeze(-1)
        groups = maxima.topk(min(n, maxima.shape[-1]), sorted=False).indices
        words = groups * GROUP + products[self._place(places, groups, len(int8))].argmax(-1)
        table = self._table(len(patches), k)
        self._mark(table, places.expand_as(words), words)
        least = self._best(patches, table, n)[0][:, -1]

        # In units of the int8 products; 4 of them for the rounding of these few operations themselves.
        slack = 2 * rounding_bound(patches.shape[-1]) * patches.norm(dim=-1)
        least = (least - slack - patches @ self._mean) / unit
        needed = torch.addmm(least.unsqueeze(-1) - 4, norms / unit.unsqueeze(-1), self._norms, alpha=-1.001)
        possible = ~(maxima < needed)  # where a bound is not a number, too
        crowded = possible.sum(-1) > max(n, _CROWDED * possible.shape[-1])
        possible[crowded] = False
        rows, groups = possible.nonzero(as_tuple=True)
        each = products.index_select(0, self._place(rows, groups, len(int8)))
        reached = ~(each < needed[rows, groups].unsqueeze(-1))
        pairs, offsets = reached.nonzero(as_tuple=True)
        self._mark(table, rows[pairs], groups[pairs] * GROUP + offsets)
        scores, ids = self._best(patches, table, k)
        too_many = int(crowded.sum())
        if too_many:
            scores[crowded], ids[crowded] = self._crowd(patches[crowded], n, k)
        with self._lock:  # most patches crowded: a rest that doubles with every such try; one good try ends it
            self._rest = min(2 * self._rest + 1, _LONGEST_REST) if 2 * too_many > len(patches) else 0
            self._rested = 0
            self.crowded += too_many
        return scores, ids

    def _rounded(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patches in int8 (P, K), the score that one unit of their products stands for, (P,), and norms (P, 4)."""
        inside = patches @ self._basis
        step = inside.abs().amax(-1, keepdim=True).clamp_min_(_TINY) / 127
        rounded = (inside / step).round_()
        length, kept = patches.norm(dim=-1), inside.norm(dim=-1)
        outside = ((length.square() - kept.square()).clamp_min_(0) + 4 * self._loose * length.square()).sqrt()
        error = torch.addcmul(inside, rounded, step, value=-1).norm(dim=-1)
        norms = torch.stack([error, kept + error, outside, length], -1)
        columns = self._int8.shape[-1] - rounded.shape[-1]
        int8 = F.pad(rounded, (0, columns, 0, max(0, _ROWS - len(rounded)))).to(torch.int8)
        return int8, step[:, 0] * self._step, norms

    def _products(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """With all words: int32 (P * G, 32), at `_place` each, and the maxima of groups float32 (P, G)."""
        blocks, length, _ = self._int8.shape
        products = self._scratch.tensor[: blocks * len(patches) * length].view(blocks, len(patches), length)
        maxima = products.new_empty(blocks, len(patches), self._groups)
        for block, out, best in zip(self._int8, products, maxima, strict=True):
            torch._int_mm(patches, block.T, out=out)
            torch.amax(out.view(len(patches), -1, GROUP), -1, out=best)
        return products.view(-1, GROUP), maxima.transpose(0, 1).flatten(1).float()

    def _place(self, patches: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
        return (groups // self._groups * count + patches) * self._groups + groups % self._groups

    def _table(self, count: int, k: int) -> torch.Tensor:
        """Which words the patches of a neighbourhood are compared with; k at least."""
        table = torch.zeros(-(-count // _NEIGHBOURS), len(self._norms.T) * GROUP, dtype=torch.bool)
        table[:, :k] = True
        return table.to(self._words.device)

    def _mark(self, table: torch.Tensor, patches: torch.Tensor, words: torch.Tensor) -> None:
        table[patches // _NEIGHBOURS, words] = True
        table[:, len(self._words) :] = False

    def _best(self, patches: torch.Tensor, table: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best of the words in the table: float32 scores, highest first, and ids (P, k)."""
        found = []
        for part, marked in zip(torch.split(patches, _NEIGHBOURS), table, strict=True):
            words = marked.nonzero()[:, 0]
            scores, place = torch.mm(part, self._words.index_select(0, words).T).topk(k)
            found.append((scores, words[place]))
        return torch.cat([scores for scores, _ in found]), torch.cat([ids for _, ids in found])

    @property
    def _crowd(self) -> Candidates:
        """What scores all words in float32, made once."""
        with self._lock:
            if self._all_words is None:
                on_cpu = self._words.device.type == "cpu"
                self._all_words = float32_candidates(self._words)[1] if on_cpu else TorchCandidates(self._words)
            return self._all_words


def _basis(centred: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns float32 (D, K) that span the leading principal directions of words, float32 (W, D)."""
    variances, directions = torch.linalg.eigh((centred.T @ centred).double())  # ascending
    variances = variances.clamp_min(0).flip(0).cumsum(0)
    enough = int((variances < _SPREAD * variances[-1]).sum()) + 1
    width = min(centred.shape[-1], -(-enough // _COLUMNS) * _COLUMNS)
    random = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned: torch.Tensor = directions[:, -width:] @ torch.linalg.qr(random).Q.to(centred.device)
    return turned.float()


def is_fast(device: torch.device) -> bool:
    """Whether int8 products are known to be fast there: on CPUs that have instructions for them (VNNI, AMX)."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported() and _are_right(device)


def _are_right(device: torch.device) -> bool:
    """Without instructions for them, some CPUs add products of int8 in 16 bits, which overflow."""
    sign = torch.where(torch.arange(_COLUMNS) % 3 == 0, -127, 127).expand(_ROWS, -1)
    left, right = sign.to(device, torch.int8), torch.full((_COLUMNS, _ROWS), 127, dtype=torch.int8, device=device)
    try:
        found = torch._int_mm(left.contiguous(), right)
    except (RuntimeError, AttributeError):
        return False
    return bool((found.cpu() == 127 * sign.sum(-1, keepdim=True)).all())

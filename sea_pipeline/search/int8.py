"""Propose words by int8 scores of all words with a bound on their error.

The n-th best of a few float32 scores is a threshold: only words whose int8 score plus bound reaches it can be among the
n best. These are scored in float32. The candidates of neighbouring patches are scored in one matmul, because neighbours
share most of them.

With m the mean word, x = Qᵀp and y = Qᵀ(w - m) are a patch and a word in the K principal directions Q of the words.
Both are scaled against each other, h = x / l and g = l y, then rotated at random so that all K coordinates are alike,
and rounded to int8. With p' and w' the vectors that the int8 numbers stand for, and p_t and w_t the parts outside of Q,

    p·w = p·m + p'·w' + error,   |error| <= |h - p'||g| + |p'||g - w'| + |p_t||w_t| + skew |p||w - m|

where `skew` is how far the two bases are from undoing each other. The rounding errors are shares of |h| and |g|. |h||g|
is least if l is the fourth root of the ratio of the mean squares of x and y: then a direction in which patches or words
hardly differ costs little. The first patches that are searched give the mean squares of x.

Shapes: P patches, W words, D embedding width, K principal directions, G groups of words.
"""

import threading
from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F

from sea_pipeline.core.errors import UserError
from sea_pipeline.search.candidates import GROUP, Candidates, Scratch, fastest_product, rounding_bound
from sea_pipeline.search.float32 import TorchCandidates

_CLIP = 4.5
"""The largest int8 number, in standard deviations of a word's coordinates."""
_ROUNDED = 0.018
"""The approximate share of |h||g| in the two rounding terms; it only decides how many directions are kept."""
_TAIL = 0.2
"""What the directions that are left out may add to the rounding terms, as a share of them."""
_COLUMNS = 64
"""K is a multiple of this, or D."""
_LEAST = 1e-4
"""The least mean square of a coordinate, as a share of their mean, so that no direction is scaled without bounds."""
_GROUPS_PER_BLOCK = 64
_ROWS = 32
_WORDS_PER_STEP = 4096
_WORDS_SEEN = 8192
"""The most words from which the directions and their scales are computed."""
_TINY = 1e-15


class Int8Table:
    """The words in int8 with the terms of their bound, see the top of this file.

    Args:
        words: float32 (W, D).
        patches: float32 (P, D), at least one, as examples of what will be searched.
    """

    def __init__(self, words: torch.Tensor, patches: torch.Tensor) -> None:
        groups = -(-len(words) // GROUP)
        blocks = -(-groups // _GROUPS_PER_BLOCK)
        self.groups = -(-groups // blocks)
        """The number of groups in a block; all blocks have the same."""
        self.mean = words.mean(0)
        self._bases(words, patches)
        # On a GPU an int8 product needs a multiple of 8 columns and at least 17 rows, hence the zeros here.
        width = self.word_basis.shape[-1]
        int8 = words.new_zeros(blocks * self.groups * GROUP, -(-width // 8) * 8, dtype=torch.int8)
        norms = words.new_zeros(len(int8), 4)
        for start in range(0, len(words), _WORDS_PER_STEP):
            part = slice(start, min(start + _WORDS_PER_STEP, len(words)))
            int8[part, :width], norms[part] = self.rounded_words(words[part])
        self.int8 = int8.view(blocks, -1, int8.shape[-1])
        self.norms = norms.view(-1, GROUP, 4).amax(1).T.contiguous()
        """(4, G), the words' factors in the four terms of the bound, each the largest in its group."""

    def _bases(self, words: torch.Tensor, patches: torch.Tensor) -> None:
        """Compute the two bases, float32 (D, K), from a part of the words and the patches, and bound what they lose."""
        # Q: the eigenvectors of the covariance of w - m, those of the largest variance first.
        centred = words[:: 1 + len(words) // _WORDS_SEEN] - self.mean
        variances, directions = torch.linalg.eigh((centred.T @ centred).double() / len(centred))
        variances, directions = variances.clamp_min(0).flip(0), directions.flip(1)
        # The mean squares of x and y in each direction, relative to their means and with a floor.
        seen = (patches.double() @ directions).square().mean(0)
        seen, spread = (part / part.mean().clamp_min(_TINY**2) + _LEAST for part in (seen, variances))
        width = _directions_kept(seen, spread)
        kept = directions[:, :width]
        # l, and a random rotation R from the QR decomposition of a Gaussian matrix; its seed is fixed.
        scale = (seen[:width] / spread[:width]).sqrt().sqrt()
        random = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        turn = torch.linalg.qr(random).Q.to(words.device)
        # h = p @ (Q / l) R and g = (w - m) @ (Q l) R. R is orthogonal, so h·g = x·y.
        self.patch_basis, self.word_basis = ((kept / scale) @ turn).float(), ((kept * scale) @ turn).float()
        self._kept = None if width == len(directions) else kept.float()
        # skew = |QQᵀ - patch_basis word_basisᵀ|, which is 0 but for rounding; without a cut QQᵀ is the identity.
        whole = torch.eye(len(directions), dtype=torch.float64, device=words.device)
        wanted = whole if self._kept is None else kept @ kept.T
        self.skew = float((wanted - self.patch_basis.double() @ self.word_basis.double().T).norm())
        self._outside = None if self._kept is None else whole - wanted
        # The float32 products that give h and g round, too: by at most `_loose` |basis| |vector|.
        self._loose = rounding_bound(len(directions))
        self._patch_loose, self._word_loose = (
            self._loose * float(basis.norm()) for basis in (self.patch_basis, self.word_basis)
        )
        self._turned_words = self.word_basis.T.contiguous()
        self._multiply = fastest_product(self._turned_words)
        # One int8 unit of g: 127 units are `_CLIP` standard deviations of a coordinate.
        self.step = max(_TINY, float(self._turned(centred).square().mean().sqrt()) * _CLIP / 127)

    def _turned(self, centred: torch.Tensor) -> torch.Tensor:
        """Compute g of centred words, (W, K)."""
        out = centred.new_empty(len(centred), len(self._turned_words))
        self._multiply(centred, self._turned_words, out)
        return out

    def rounded_words(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Round words to int8 (W, K), and compute their factors in the four terms of the bound, (W, 4).

        These are |g|, |g - w'|, |w_t| and skew |w - m|.
        """
        centred = words - self.mean
        inside = self._turned(centred)
        rounded = (inside / self.step).round_().clamp_(-127, 127)
        length = centred.norm(dim=-1)
        lost = self._word_loose * length  # the rounding of the float32 product and of the mean
        kept, error = inside.norm(dim=-1), torch.add(inside, rounded, alpha=-self.step).norm(dim=-1)
        outside = torch.zeros_like(length)
        if self._outside is not None:
            outside = (centred.double() @ self._outside).norm(dim=-1).float()
        return rounded.to(torch.int8), torch.stack([kept + lost, error + lost, outside, self.skew * length], -1)

    def rounded(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Round patches to int8 (P, K), and compute the unit of their products, (P,), and factors of the bound, (P, 4).

        The unit is the score that 1 of an int8 product stands for. The factors are |h - p'|, |p'|, |p_t| and |p|.
        """
        inside = patches @ self.patch_basis
        # Each patch has a step of its own, so no coordinate is clipped.
        step = inside.abs().amax(-1, keepdim=True).clamp_min_(_TINY) / 127
        rounded = (inside / step).round_()
        length, kept = patches.norm(dim=-1), inside.norm(dim=-1)
        error = torch.addcmul(inside, rounded, step, value=-1).norm(dim=-1) + self._patch_loose * length
        outside = torch.zeros_like(length)
        if self._kept is not None:
            # |p_t|² = |p|² - |Qᵀp|², and at most what rounding may have taken from it.
            within = (patches @ self._kept).square().sum(-1)
            lost = 4 * self._loose * self._kept.shape[-1] ** 0.5 * length.square()
            outside = ((length.square() - within).clamp_min_(0) + lost).sqrt()
        norms = torch.stack([error, kept + error, outside, length], -1)  # |p'| <= |h| + |h - p'|
        columns = self.int8.shape[-1] - rounded.shape[-1]
        int8 = F.pad(rounded, (0, columns, 0, max(0, _ROWS - len(rounded)))).to(torch.int8)
        return int8, step[:, 0] * self.step, norms


def _directions_kept(seen: torch.Tensor, spread: torch.Tensor) -> int:
    """Choose K, the fewest directions that suffice, from the mean squares of patches and words in each, (D,)."""
    width = len(seen)
    for count in range(_COLUMNS, width, _COLUMNS):
        # With the best l, |h|² and |g|² are both the sum of sqrt(seen spread), which is |h||g| (relative).
        rounding = _ROUNDED * float((seen[:count] * spread[:count]).sqrt().sum())
        # |p_t||w_t| of the directions left out must be small against the rounding terms.
        if float((seen[count:].sum() * spread[count:].sum()).sqrt()) <= _TAIL * rounding:
            return count
    return width


_NEIGHBOURS = 64
"""Neighbouring patches whose candidates are scored together."""
_CROWDED = 1 / 4
"""If more than this share of all groups is possible, float32 scores of all words cost less."""
_LONGEST_REST = 32
"""The most calls in a row that skip int8."""
_CHECKED_ROWS, _CHECKED_COLUMNS = 32, 64
"""Rows and columns of the product that shows whether this machine multiplies int8 correctly."""


class Int8Candidates:
    """Proposes words by int8 scores, see the top of this file.

    Raises:
        UserError: this processor does not compute int8 products correctly.
    """

    patches_per_call = 512

    def __init__(self, words: torch.Tensor) -> None:
        if not _are_right(words.device):
            raise UserError(
                f"--search int8: torch cannot multiply int8 on this {words.device.type}; use --search torch"
            )
        self._words = words
        self.crowded = 0
        """The number of patches so far with too many candidates, which got float32 scores of all words."""
        self._rest = self._rested = 0
        """The calls that shall skip int8, because it excluded too little before, and those that have skipped it."""
        self._lock = threading.Lock()
        self.otherwise: Callable[[], Candidates] = lambda: self._in_float32
        """Returns the search that scores all words in float32, for patches with too many candidates."""
        self._table: Int8Table | None = None

    def _table_for(self, patches: torch.Tensor) -> Int8Table:
        """Return the words in int8, made from the first patches that come."""
        with self._lock:
            if self._table is None:
                self._table = Int8Table(self._words, patches)
                numbers = self.patches_per_call * self._table.int8[..., 0].numel()
                device = self._words.device
                self._scratch = Scratch(lambda: torch.empty(numbers, dtype=torch.int32, device=device))
            return self._table

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Candidates`."""
        with self._lock:
            rests = self._rested < self._rest
            self._rested += rests
            self.crowded += len(patches) * rests
        if rests:
            return self.otherwise()(patches, n, k)
        # Step 1: p'·w' for all words in int8 units, and the highest of each group of words.
        table = self._table_for(patches)
        int8, unit, norms = table.rounded(patches)
        products, maxima = self._products(table, int8)
        maxima = maxima[: len(patches)]
        # Step 2: the best word of each of the n best groups. The n-th best float32 score of these, and of those of the
        # neighbouring patches, is a lower bound of the n-th best score of all words: `least`.
        places = torch.arange(len(patches), device=patches.device).unsqueeze(-1)
        groups = maxima.topk(min(n, maxima.shape[-1]), sorted=False).indices
        words = groups * GROUP + products[_place(table, places, groups, len(int8))].argmax(-1)
        compared = self._compared(GROUP * table.norms.shape[-1], len(patches), k)
        self._mark(compared, places.expand_as(words), words)
        least = self._best(patches, compared, n)[0][:, -1]
        # Step 3: the product that a word of each group needs, (least - slack - p·m - bound) / unit. `slack` is for the
        # rounding of float32 scores, 4 units for that of these operations; the bound is the product of the factors.
        slack = 2 * rounding_bound(patches.shape[-1]) * patches.norm(dim=-1)
        least = (least - slack - patches @ table.mean) / unit
        needed = torch.addmm(least.unsqueeze(-1) - 4, norms / unit.unsqueeze(-1), table.norms, alpha=-1.001)
        # Step 4: a group without such a word is excluded. `~(a < b)` keeps groups whose bound is NaN.
        possible = ~(maxima < needed)
        crowded = possible.sum(-1) > max(n, _CROWDED * possible.shape[-1])
        possible[crowded] = False
        # Step 5: mark the single words that reach it, and score all marked words in float32.
        rows, groups = possible.nonzero(as_tuple=True)
        each = products.index_select(0, _place(table, rows, groups, len(int8)))
        reached = ~(each < needed[rows, groups].unsqueeze(-1))
        pairs, offsets = reached.nonzero(as_tuple=True)
        self._mark(compared, rows[pairs], groups[pairs] * GROUP + offsets)
        scores, ids = self._best(patches, compared, k)
        too_many = int(crowded.sum())
        if too_many:
            scores[crowded], ids[crowded] = self.otherwise()(patches[crowded], n, k)
        # If most patches are crowded, the next calls skip int8, twice as many after every such try, until a good one.
        with self._lock:
            self._rest = min(2 * self._rest + 1, _LONGEST_REST) if 2 * too_many > len(patches) else 0
            self._rested = 0
            self.crowded += too_many
        return scores, ids

    def _products(self, table: Int8Table, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Multiply patches with all words.

        Returns:
            The products, int32 (P * G, 32), in which `_place` finds a patch and a group, and the maxima of groups,
            float32 (P, G).
        """
        blocks, length, _ = table.int8.shape
        products = self._scratch.tensor[: blocks * len(patches) * length].view(blocks, len(patches), length)
        maxima = products.new_empty(blocks, len(patches), table.groups)
        for block, out, best in zip(table.int8, products, maxima, strict=True):
            torch._int_mm(patches, block.T, out=out)
            torch.amax(out.view(len(patches), -1, GROUP), -1, out=best)
        return products.view(-1, GROUP), maxima.transpose(0, 1).flatten(1).float()

    def _compared(self, words: int, count: int, k: int) -> torch.Tensor:
        """Make a table of the words with which each neighbourhood of patches is compared.

        The first k are marked.
        """
        table = torch.zeros(-(-count // _NEIGHBOURS), words, dtype=torch.bool)
        table[:, :k] = True
        return table.to(self._words.device)

    def _mark(self, table: torch.Tensor, patches: torch.Tensor, words: torch.Tensor) -> None:
        """Mark words for the neighbourhoods of patches, but no padding."""
        table[patches // _NEIGHBOURS, words] = True
        table[:, len(self._words) :] = False

    def _best(self, patches: torch.Tensor, table: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the k best of the marked words, as float32 scores, highest first, and ids (P, k)."""
        found = []
        for part, marked in zip(torch.split(patches, _NEIGHBOURS), table, strict=True):
            words = marked.nonzero()[:, 0]
            scores, position = torch.mm(part, self._words.index_select(0, words).T).topk(k)
            found.append((scores, words[position]))
        return torch.cat([scores for scores, _ in found]), torch.cat([ids for _, ids in found])

    @cached_property
    def _in_float32(self) -> Candidates:
        return TorchCandidates(self._words)


def _place(table: Int8Table, patches: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """Return the row of a patch and a group in the products of `count` patches."""
    return (groups // table.groups * count + patches) * table.groups + groups % table.groups


def is_fast(device: torch.device) -> bool:
    """Tell whether int8 products are known to be fast, which is so on CPUs with instructions for them (VNNI, AMX)."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported() and _are_right(device)


def _are_right(device: torch.device) -> bool:
    """Tell whether this device computes int8 products correctly.

    Without instructions for them, some CPUs add products of int8 in 16 bits, which overflow.
    """
    sign = torch.where(torch.arange(_CHECKED_COLUMNS) % 3 == 0, -127, 127).expand(_CHECKED_ROWS, -1)
    left, right = (
        sign.to(device, torch.int8),
        torch.full((_CHECKED_COLUMNS, _CHECKED_ROWS), 127, dtype=torch.int8, device=device),
    )
    try:
        found = torch._int_mm(left.contiguous(), right)
    except (RuntimeError, AttributeError):
        return False
    return bool((found.cpu() == 127 * sign.sum(-1, keepdim=True)).all())

"""Words and patches in int8, scaled for each other, with what bounds the error of their products.

With m the mean word, x = Qᵀp and y = Qᵀ(w - m) are a patch and a word in the K principal directions Q of the words.
Both are scaled against each other, h = x / l and g = l y, turned at random so that all K coordinates are alike, and
rounded to int8. With p' and w' what the int8 numbers stand for, and p_t and w_t what lies outside of Q,

    p·w = p·m + p'·w' + error,   |error| <= |h - p'||g| + |p'||g - w'| + |p_t||w_t| + skew |p||w - m|

where `skew` is how far the two bases are from undoing each other. The rounding errors are shares of |h| and |g|, and
|h||g| is least where l is the fourth root of the ratio of the mean squares of x and y: a direction in which patches or
words hardly differ then costs little. The first patches that are searched say what to expect of x.

Shapes: P patches, W words, D embedding width, K principal directions, G groups of words.
"""

import torch
import torch.nn.functional as F

from sea_pipeline.candidates import GROUP, fastest_product, rounding_bound

_CLIP = 4.5
"""The largest int8 number, in standard deviations of a word's coordinates."""
_ROUNDED = 0.018
"""About what share of |h||g| the two terms of rounding are; it only decides how many directions are kept."""
_TAIL = 0.2
"""What the directions that are left out may add to these, as a share."""
_COLUMNS = 64
"""K is a multiple of it, or D."""
_LEAST = 1e-4
"""The least mean square of a coordinate, as a share of their mean: no direction is scaled without bounds."""
_GROUPS_PER_BLOCK = 64
_ROWS = 32
_WORDS_PER_STEP = 4096
_WORDS_SEEN = 8192
"""At most, for the directions and their scales."""
_TINY = 1e-15


class Int8Table:
    """See the top of this file.

    Args:
        words: float32 (W, D).
        patches: float32 (P, D), at least one: what patches are like.
    """

    def __init__(self, words: torch.Tensor, patches: torch.Tensor) -> None:
        groups = -(-len(words) // GROUP)
        blocks = -(-groups // _GROUPS_PER_BLOCK)
        self.groups = -(-groups // blocks)
        """Of a block; all blocks are as long."""
        self.mean = words.mean(0)
        self._bases(words, patches)
        # A GPU multiplies multiples of 8 columns and no fewer than 17 rows.
        width = self.word_basis.shape[-1]
        int8 = words.new_zeros(blocks * self.groups * GROUP, -(-width // 8) * 8, dtype=torch.int8)
        norms = words.new_zeros(len(int8), 4)
        for start in range(0, len(words), _WORDS_PER_STEP):
            part = slice(start, min(start + _WORDS_PER_STEP, len(words)))
            int8[part, :width], norms[part] = self.rounded_words(words[part])
        self.int8 = int8.view(blocks, -1, int8.shape[-1])
        self.norms = norms.view(-1, GROUP, 4).amax(1).T.contiguous()
        """(4, G), as the terms of the bound."""

    def _bases(self, words: torch.Tensor, patches: torch.Tensor) -> None:
        """The two bases float32 (D, K), scaled by a part of the words and by patches, and what is lost by them."""
        centred = words[:: 1 + len(words) // _WORDS_SEEN] - self.mean
        variances, directions = torch.linalg.eigh((centred.T @ centred).double() / len(centred))
        variances, directions = variances.clamp_min(0).flip(0), directions.flip(1)
        seen = (patches.double() @ directions).square().mean(0)
        seen, spread = (part / part.mean().clamp_min(_TINY**2) + _LEAST for part in (seen, variances))
        width = _directions_kept(seen, spread)
        kept = directions[:, :width]
        scale = (seen[:width] / spread[:width]).sqrt().sqrt()
        random = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        turn = torch.linalg.qr(random).Q.to(words.device)
        self.patch_basis, self.word_basis = ((kept / scale) @ turn).float(), ((kept * scale) @ turn).float()
        self._kept = None if width == len(directions) else kept.float()
        whole = torch.eye(len(directions), dtype=torch.float64, device=words.device)
        wanted = whole if self._kept is None else kept @ kept.T
        self.skew = float((wanted - self.patch_basis.double() @ self.word_basis.double().T).norm())
        self._outside = None if self._kept is None else whole - wanted
        self._loose = rounding_bound(len(directions))
        self._patch_loose, self._word_loose = (
            self._loose * float(basis.norm()) for basis in (self.patch_basis, self.word_basis)
        )
        self._turned_words = self.word_basis.T.contiguous()
        self._multiply = fastest_product(self._turned_words)
        self.step = max(_TINY, float(self._turned(centred).square().mean().sqrt()) * _CLIP / 127)

    def _turned(self, centred: torch.Tensor) -> torch.Tensor:
        out = centred.new_empty(len(centred), len(self._turned_words))
        self._multiply(centred, self._turned_words, out)
        return out

    def rounded_words(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Words in int8 (W, K), and norms (W, 4), as the terms of the bound."""
        centred = words - self.mean
        inside = self._turned(centred)
        rounded = (inside / self.step).round_().clamp_(-127, 127)
        length = centred.norm(dim=-1)
        lost = self._word_loose * length  # of what the float32 product and the mean rounded
        kept, error = inside.norm(dim=-1), torch.add(inside, rounded, alpha=-self.step).norm(dim=-1)
        outside = torch.zeros_like(length)
        if self._outside is not None:
            outside = (centred.double() @ self._outside).norm(dim=-1).float()
        return rounded.to(torch.int8), torch.stack([kept + lost, error + lost, outside, self.skew * length], -1)

    def rounded(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patches in int8 (P, K), the score that one unit of their products stands for, (P,), and norms (P, 4)."""
        inside = patches @ self.patch_basis
        step = inside.abs().amax(-1, keepdim=True).clamp_min_(_TINY) / 127
        rounded = (inside / step).round_()
        length, kept = patches.norm(dim=-1), inside.norm(dim=-1)
        error = torch.addcmul(inside, rounded, step, value=-1).norm(dim=-1) + self._patch_loose * length
        outside = torch.zeros_like(length)
        if self._kept is not None:
            within = (patches @ self._kept).square().sum(-1)
            lost = 4 * self._loose * self._kept.shape[-1] ** 0.5 * length.square()
            outside = ((length.square() - within).clamp_min_(0) + lost).sqrt()
        norms = torch.stack([error, kept + error, outside, length], -1)
        columns = self.int8.shape[-1] - rounded.shape[-1]
        int8 = F.pad(rounded, (0, columns, 0, max(0, _ROWS - len(rounded)))).to(torch.int8)
        return int8, step[:, 0] * self.step, norms


def _directions_kept(seen: torch.Tensor, spread: torch.Tensor) -> int:
    """K: as few of the directions as will do, by the mean squares of patches and words in each, (D,)."""
    width = len(seen)
    for count in range(_COLUMNS, width, _COLUMNS):
        rounding = _ROUNDED * float((seen[:count] * spread[:count]).sqrt().sum())
        if float((seen[count:].sum() * spread[count:].sum()).sqrt()) <= _TAIL * rounding:
            return count
    return width

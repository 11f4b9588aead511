"""Words that may be among the best, by int8 scores of all words with a bound on their error; see `int8_table.py`.

The n-th best of a few float32 scores is a threshold: only words whose int8 score plus bound reaches it can be among the
n best. These are scored in float32, the candidates of neighbouring patches in one matmul, as neighbours share most of
them.

Shapes: P patches, W words, D embedding width, K principal directions, G groups of words.
"""

import threading
from collections.abc import Callable

import torch

from sea_pipeline.candidates import (
    GROUP,
    Candidates,
    Scratch,
    TorchCandidates,
    rounding_bound,
)
from sea_pipeline.core.errors import UserError
from sea_pipeline.int8_table import Int8Table

_NEIGHBOURS = 64
"""Patches whose candidates are scored together."""
_CROWDED = 1 / 4
"""The share of all groups from which on float32 scores of all words cost less."""
_LONGEST_REST = 32
"""Calls in a row at most that do without int8."""
_CHECKED_ROWS, _CHECKED_COLUMNS = 32, 64
"""Of a product that says whether they are right."""


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
        self.crowded = 0
        """Patches so far with too many candidates, which got float32 scores of all words."""
        self._rest = self._rested = 0
        """Calls that shall do without int8, as it told nothing the last times, and those that have since."""
        self._lock = threading.Lock()
        self.otherwise: Callable[[], Candidates] = self._in_float32
        """Makes what scores all words in float32, for patches with too many candidates."""
        self._all_words: Candidates | None = None
        self._table: Int8Table | None = None

    def _table_for(self, patches: torch.Tensor) -> Int8Table:
        """The words in int8, made for the first patches that come."""
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
        table = self._table_for(patches)
        int8, unit, norms = table.rounded(patches)
        products, maxima = self._products(table, int8)
        maxima = maxima[: len(patches)]
        places = torch.arange(len(patches), device=patches.device).unsqueeze(-1)
        groups = maxima.topk(min(n, maxima.shape[-1]), sorted=False).indices
        words = groups * GROUP + products[_place(table, places, groups, len(int8))].argmax(-1)
        compared = self._compared(GROUP * table.norms.shape[-1], len(patches), k)
        self._mark(compared, places.expand_as(words), words)
        least = self._best(patches, compared, n)[0][:, -1]

        # In units of the int8 products; 4 of them for the rounding of these few operations themselves.
        slack = 2 * rounding_bound(patches.shape[-1]) * patches.norm(dim=-1)
        least = (least - slack - patches @ table.mean) / unit
        needed = torch.addmm(least.unsqueeze(-1) - 4, norms / unit.unsqueeze(-1), table.norms, alpha=-1.001)
        possible = ~(maxima < needed)  # where a bound is not a number, too
        crowded = possible.sum(-1) > max(n, _CROWDED * possible.shape[-1])
        possible[crowded] = False
        rows, groups = possible.nonzero(as_tuple=True)
        each = products.index_select(0, _place(table, rows, groups, len(int8)))
        reached = ~(each < needed[rows, groups].unsqueeze(-1))
        pairs, offsets = reached.nonzero(as_tuple=True)
        self._mark(compared, rows[pairs], groups[pairs] * GROUP + offsets)
        scores, ids = self._best(patches, compared, k)
        too_many = int(crowded.sum())
        if too_many:
            scores[crowded], ids[crowded] = self.otherwise()(patches[crowded], n, k)
        with self._lock:  # most patches crowded: a rest that doubles with every such try; one good try ends it
            self._rest = min(2 * self._rest + 1, _LONGEST_REST) if 2 * too_many > len(patches) else 0
            self._rested = 0
            self.crowded += too_many
        return scores, ids

    def _products(self, table: Int8Table, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """With all words: int32 (P * G, 32), at `_place` each, and the maxima of groups float32 (P, G)."""
        blocks, length, _ = table.int8.shape
        products = self._scratch.tensor[: blocks * len(patches) * length].view(blocks, len(patches), length)
        maxima = products.new_empty(blocks, len(patches), table.groups)
        for block, out, best in zip(table.int8, products, maxima, strict=True):
            torch._int_mm(patches, block.T, out=out)
            torch.amax(out.view(len(patches), -1, GROUP), -1, out=best)
        return products.view(-1, GROUP), maxima.transpose(0, 1).flatten(1).float()

    def _compared(self, words: int, count: int, k: int) -> torch.Tensor:
        """Which of so many words the patches of each neighbourhood are compared with; k at least."""
        table = torch.zeros(-(-count // _NEIGHBOURS), words, dtype=torch.bool)
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

    def _in_float32(self) -> Candidates:
        if self._all_words is None:
            self._all_words = TorchCandidates(self._words)
        return self._all_words


def _place(table: Int8Table, patches: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """Where the products of patches, of which there are `count`, with groups are."""
    return (groups // table.groups * count + patches) * table.groups + groups % table.groups


def is_fast(device: torch.device) -> bool:
    """Whether int8 products are known to be fast there: on CPUs that have instructions for them (VNNI, AMX)."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported() and _are_right(device)


def _are_right(device: torch.device) -> bool:
    """Without instructions for them, some CPUs add products of int8 in 16 bits, which overflow."""
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

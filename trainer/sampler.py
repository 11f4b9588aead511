"""The order of samples: a function of the seed and the epoch alone, so that a resumed run goes on exactly.

An index that the sampler gives carries its epoch, `epoch * length + sample`: whichever process reads the sample knows
the epoch without being told.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

BLANK = -1
"""In place of an index: no sample."""


class EpochSampler(Sampler[int]):
    """Every sample once an epoch, in an order drawn from (seed, epoch).

    Args:
        length: samples in the data.
        seed: of the order.
        lengths: (length,) tokens of each sample; given, batches hold samples of similar length, and of one modality.
        has_image: (length,), goes with `lengths`.
        batch_size: samples of a step over all processes, goes with `lengths`.
        multiple: samples that all processes read at a time; `BLANK` fills the last time up, so that each reads as often
            and no sample is read twice.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        *,
        lengths: Sequence[int] | None = None,
        has_image: Sequence[bool] | None = None,
        batch_size: int = 1,
        multiple: int = 1,
    ) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._has_image = np.ones(length, bool) if has_image is None else np.asarray(has_image, bool)
        self._batch_size = batch_size
        self._blanks = -length % multiple

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch, the resumed one too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length + self._blanks

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(self.length) if self._lengths is None else self._grouped(random)
        yield from (self.epoch * self.length + order).tolist()
        yield from [BLANK] * self._blanks

    def _grouped(self, random: np.random.Generator) -> npt.NDArray[np.int64]:
        """LLaVA's order: shuffled, sorted by length inside long stretches, cut in batches, the batches shuffled."""
        assert self._lengths is not None
        batches: list[npt.NDArray[np.int64]] = []
        rest: list[npt.NDArray[np.int64]] = []
        for modality in (True, False):
            members = random.permutation(np.flatnonzero(self._has_image == modality))
            stretch = 50 * self._batch_size
            for start in range(0, len(members), stretch):
                part = members[start : start + stretch]
                part = part[np.argsort(-self._lengths[part], kind="stable")]
                cut = [part[at : at + self._batch_size] for at in range(0, len(part), self._batch_size)]
                batches += [batch for batch in cut if len(batch) == self._batch_size]
                rest += [batch for batch in cut if len(batch) < self._batch_size]
        order = [batches[place] for place in random.permutation(len(batches))] + rest
        return np.concatenate(order) if order else np.zeros(0, np.int64)

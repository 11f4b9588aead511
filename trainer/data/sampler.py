"""The order of samples: a function of the seed and the epoch alone, so that a resumed run goes on exactly.

An index that the sampler gives carries its epoch, `epoch * length + sample`: whichever process reads the sample knows
the epoch without being told.
"""

import heapq
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
        lengths: (length,) tokens of each sample; given, the order is LLaVA's for stage 2: a step's samples all have
            images or none has, and its micro-batches are alike long.
        has_image: (length,), goes with `lengths`.
        batch_size: samples of a step over all processes, goes with `lengths`.
        micro_batches: of a step over all processes, of equal size, goes with `lengths`.
        multiple: samples that all processes read at a time; `BLANK` fills the last time up, so that each reads as often
            and no sample is read twice.
        drop: of this many samples the last batch must be whole, or is left out.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        *,
        lengths: Sequence[int] | None = None,
        has_image: Sequence[bool] | None = None,
        batch_size: int = 1,
        micro_batches: int = 1,
        multiple: int = 1,
        drop: int = 1,
    ) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._has_image = np.ones(length, bool) if has_image is None else np.asarray(has_image, bool)
        self._batch_size = batch_size
        self._micro_batches = micro_batches
        self._kept = length - length % drop
        self._blanks = -self._kept % multiple

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch, the resumed one too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._kept + self._blanks

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(self.length) if self._lengths is None else self._grouped(random)
        yield from (self.epoch * self.length + order[: self._kept]).tolist()
        yield from [BLANK] * self._blanks

    def _grouped(self, random: np.random.Generator) -> npt.NDArray[np.int64]:
        """LLaVA's order: each modality shuffled and cut into steps, the steps shuffled, what is left over behind them.

        Samples are long and short within a step; only among its micro-batches their tokens are shared out evenly.
        """
        steps: list[npt.NDArray[np.int64]] = []
        rest: list[npt.NDArray[np.int64]] = []
        for modality in (True, False):
            members = random.permutation(np.flatnonzero(self._has_image == modality))
            whole = len(members) - len(members) % self._batch_size
            steps += [self._shared_out(step) for step in members[:whole].reshape(-1, self._batch_size)]
            rest.append(members[whole:])
        return np.concatenate([*(steps[place] for place in random.permutation(len(steps))), *rest])

    def _shared_out(self, step: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A step's samples by micro-batch: the longest first, each to the micro-batch with the fewest tokens so far."""
        assert self._lengths is not None
        size = self._batch_size // self._micro_batches
        parts: list[list[int]] = [[] for _ in range(self._micro_batches)]
        open_parts = [(0, number) for number in range(self._micro_batches)]
        for sample in step[np.argsort(-self._lengths[step], kind="stable")].tolist():
            tokens, number = heapq.heappop(open_parts)
            parts[number].append(sample)
            if len(parts[number]) < size:
                heapq.heappush(open_parts, (tokens + int(self._lengths[sample]), number))
        return np.concatenate(parts).astype(np.int64)

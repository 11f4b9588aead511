"""Order samples by a function of the seed and the epoch alone, so that a resumed run goes on exactly.

An index that the sampler yields carries its epoch, `epoch * length + sample`, so a process that reads the sample knows
the epoch from the index.
"""

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

BLANK = -1
"""Stands for no sample; it is yielded in place of an index."""


class EpochSampler(Sampler[int]):
    """Yield each sample once an epoch, in an order drawn from (seed, epoch).

    Args:
        length: number of samples in the data.
        seed: seed of the order.
        lengths: (length,) tokens of each sample. If given, the order is LLaVA's for stage 2: either all samples of a
            step have images or none has, and the micro-batches of a step have about equally many tokens.
        has_image: (length,) whether a sample has images; used with `lengths`.
        batch_size: samples of a step over all processes; used with `lengths`.
        micro_batches: number of micro-batches of a step over all processes, of equal size; used with `lengths`.
        multiple: pad the epoch with `BLANK` to a multiple of this, the samples that all processes read at a time, so
            that each process reads equally often and no sample twice.
        drop: batch size; an incomplete last batch of this size is dropped.
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
        """Set the epoch, as the data loader does before each epoch, including a resumed one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._kept + self._blanks

    def __iter__(self) -> Iterator[int]:
        # The draw that torch's loader makes, see `get_train_dataloader`; without it, runs that have begun would go on
        # with other dropout.
        torch.empty((), dtype=torch.int64).random_()
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(self.length) if self._lengths is None else self._grouped(random)
        yield from (self.epoch * self.length + order[: self._kept]).tolist()
        yield from [BLANK] * self._blanks

    def _grouped(self, random: np.random.Generator) -> npt.NDArray[np.int64]:
        """Draw LLaVA's order for stage 2.

        Each modality is shuffled and cut into steps, the steps are shuffled, and what does not fill a step comes last.
        A step mixes long and short samples; only among its micro-batches are tokens shared out evenly.
        """
        steps: list[npt.NDArray[np.int64]] = []
        rest: list[npt.NDArray[np.int64]] = []
        for modality in (True, False):
            members = random.permutation(np.flatnonzero(self._has_image == modality))
            whole = len(members) - len(members) % self._batch_size
            steps += [self._shared_out(step) for step in members[:whole].reshape(-1, self._batch_size)]
            rest.append(members[whole:])
        return np.concatenate([*(steps[position] for position in random.permutation(len(steps))), *rest])

    def _shared_out(self, step: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Share a step's samples out to its micro-batches.

        Takes the longest sample first, and gives each to the micro-batch with the fewest tokens that still has room.
        """
        assert self._lengths is not None
        size = self._batch_size // self._micro_batches
        parts: list[list[int]] = [[] for _ in range(self._micro_batches)]
        open_parts = [(0, number) for number in range(self._micro_batches)]
        # Longest first into the emptiest open micro-batch; a full one is not put back on the heap.
        for sample in step[np.argsort(-self._lengths[step], kind="stable")].tolist():
            tokens, number = heapq.heappop(open_parts)
            parts[number].append(sample)
            if len(parts[number]) < size:
                heapq.heappush(open_parts, (tokens + int(self._lengths[sample]), number))
        return np.concatenate(parts).astype(np.int64)

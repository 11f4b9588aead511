"""Write the rows of one shard of labels to a file in plan order, whatever order the images come in.

Shapes: B images of a batch, P patches, D embedding width, n labels a patch.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sea_pipeline.core.parallel import InOrder
from sea_pipeline.inputs.crops import CropBox
from sea_pipeline.inputs.samples import BadSample, Sample
from sea_pipeline.labels.format import LabelRow, ShardWriter, to_stored

Seconds = defaultdict[str, float]
_NONE: npt.NDArray[Any] = np.empty(0)


class EncoderInput(NamedTuple):
    """A good image that is ready for the encoder."""

    sample: Sample
    sha256: bytes
    size: tuple[int, int]
    """(width, height) of the upright image."""
    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    crop_box: CropBox


class LabelledBatch(NamedTuple):
    """A batch of good images after encoder and search."""

    items: list[EncoderInput]
    """The images with finite embeddings."""
    rest: list[EncoderInput]
    """The other images."""
    word_ids: torch.Tensor
    """int32 (items, P, n)."""
    scores: torch.Tensor
    """float64 (items, P, n)."""
    patch_sums: torch.Tensor
    """float64 (items, D): the sum of each image's patch embeddings."""
    seconds: Seconds


class ShardRows(InOrder[LabelRow]):
    """Writes the rows of a shard in plan order, whatever order they come in.

    Args:
        samples: the shard's samples in plan order; a sample that occurs twice is written twice.
        writer: writes the rows.
        folder: the folder for rows that come early.
        width: D.
    """

    def __init__(self, samples: list[Sample], writer: ShardWriter, folder: Path, width: int) -> None:
        super().__init__(self._write, folder)
        self._positions: defaultdict[Sample, list[int]] = defaultdict(list)
        """The unsettled places of each sample, in descending order, so that `pop` gives the first."""
        for position in reversed(range(len(samples))):
            self._positions[samples[position]].append(position)
        self._bad: dict[int, BadSample] = {}
        self.count = 0
        self.first_sha256: str | None = None
        self.patch_sum = np.zeros(width)
        """(D,): summed in plan order, so that it is the same to the last bit whatever order the rows came in."""
        self._writer = writer

    def add_batch(self, found: LabelledBatch, bad: list[BadSample]) -> None:
        """Settle the places of a batch, and of the images that were found to be bad.

        `bad` lists all bad images of the shard so far.
        """
        stored = to_stored(found.word_ids.numpy(), found.scores.numpy())
        for item, *arrays in zip(found.items, *stored, found.patch_sums.numpy(), strict=True):
            self.add(self._positions[item.sample].pop(), _row(item), arrays)
        self.pass_over(bad)

    def pass_over(self, bad: list[BadSample]) -> None:
        """Settle the places of the images that were found to be bad since the last call.

        `bad` lists all bad images of the shard so far.
        """
        for image in bad[len(self._bad) :]:
            position = self._positions[image.sample].pop()
            self._bad[position] = image
            self.skip(position)

    def bad(self) -> list[BadSample]:
        """Return the bad images in plan order, not in the order in which they were found."""
        return [self._bad[position] for position in sorted(self._bad)]

    def _write(self, row: LabelRow, arrays: Sequence[npt.NDArray[Any]]) -> None:
        word_ids, scores, patch_sum = arrays
        self._writer.add(row._replace(word_ids=word_ids, scores=scores))
        self.patch_sum += patch_sum
        self.first_sha256 = self.first_sha256 or row.image_sha256.hex()
        self.count += 1


def _row(item: EncoderInput) -> LabelRow:
    """Build the row of an image without its labels."""
    width, height = item.size
    return LabelRow(
        image_id=item.sample.image_id,
        uri=item.sample.uri,
        image_sha256=item.sha256,
        height=height,
        width=width,
        crop_box=item.crop_box,
        word_ids=_NONE,
        scores=_NONE,
    )

"""Turn tokenised rows and their labels into samples and batches.

Pixels are read as labelling reads them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset as Rows
from PIL import Image
from torch.utils.data import Dataset

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.crops import (
    WHOLE,
    CropBox,
    crop_id,
    image_and_crop,
    inside,
    labelled_crop,
    random_square,
    reached,
)
from sea_pipeline.inputs.pixels import BadImageError, DecodedImage, read_image
from sea_pipeline.label_cache import LabelCache
from trainer.data import geometry
from trainer.data.sampler import BLANK
from trainer.model.aligned_llava import Batch
from trainer.model.load import ModelFolder
from trainer.recipes.recipe import Sea
from trainer.sampling import draw, generator, one_patch_per_word
from trainer.targets.store import Targets, TargetStore

MEND_IN_TRAINING = (
    "mend it and go on with --resume, or remove the sample from the data and begin anew with another --out"
)
"""What to do about an image that a run cannot read."""


class TrainingSample(TypedDict):
    """A sample of an epoch with k images of m visual tokens each, l tokens and K drawn patches."""

    row: int
    epoch: int
    input_ids: torch.Tensor
    """int64 (l,), image tokens expanded."""
    trained: torch.Tensor
    """bool (l,)."""
    images: torch.Tensor | None
    """float32 (k, 3, height, width), or with kept features (k, m, tower width)."""
    patches: npt.NDArray[np.int64]
    """(K,): indices of the drawn patches; patch p of the sample's image i is i * m + p."""
    words: npt.NDArray[np.int64]
    """(K,): the word id drawn for each of these patches."""
    targets: list[Targets]
    """The targets of each image if they are read from a teacher's folder; else empty."""


class TowerInput(NamedTuple):
    """An image as the model takes it (pixels or the tower's output), and the part of it that the grid covers."""

    values: torch.Tensor
    box: CropBox


class TrainingLabels:
    """The labels of a run's images, and the settings by which words are drawn from them (SEA section 4.2)."""

    def __init__(self, cache: LabelCache, sea: Sea, transfer: bool, token_keys: npt.NDArray[np.int64] | None) -> None:
        self.cache = cache
        self.sea = sea
        self.transfer = transfer
        self.token_keys = token_keys
        """(q,): equal for two words with the same LLM tokens; None if all words count as different."""

    def of(self, image_id: str, grid: tuple[int, int], box: CropBox) -> Any:  # noqa: ANN401 - sea_pipeline's Labels
        """Return the labels of an image on the tower's grid and crop, or None if the image has no labels."""
        if image_id not in self.cache:
            return None
        return geometry.placed(self.cache[image_id], grid, box, transfer=self.transfer, image_id=image_id)


class TrainingData(Dataset[TrainingSample]):
    """Samples by the index `epoch * len + row` of an `EpochSampler`.

    What is drawn for a sample depends on (seed, epoch, row) alone, so a resumed run draws the same.

    Args:
        rows: tokenised rows, see `read_conversations`.
        locate: returns the file of an image id.
        folder: the model's; its image processor makes the tower's input.
        labels: None if no loss term needs words.
        targets: a teacher's targets of all images; None if no loss term needs them.
        crops: number of labelled crops of each image; one of them or the whole image is drawn.
        random_crop: smallest crop, as a share of the area of the image's largest square; None leaves images whole.
        seed: seed of crops and drawn words.
        advice: what to do about an image that cannot be read.

    Attributes:
        grid: (rows, columns) of an image's visual tokens, so m = rows * columns.
    """

    def __init__(
        self,
        rows: Rows,
        locate: Callable[[str], Path],
        folder: ModelFolder,
        *,
        labels: TrainingLabels | None = None,
        targets: TargetStore | None = None,
        crops: int = 0,
        random_crop: float | None = None,
        seed: int = 0,
        advice: str = MEND_IN_TRAINING,
    ) -> None:
        self.rows = rows
        self.processor = folder.processor
        self.grid = folder.grid
        self._reach = folder.reach
        self._advice = advice
        self.labels = labels
        self.kept: dict[str, TowerInput] | None = None
        """The tower's output for each view, see `tower_features`; used in place of pixels if it is set."""
        self.targets = targets
        self.read: Callable[[Path], DecodedImage] = read_image
        """Reads the image in a file. The command `teacher` sets another, which tries again."""
        self.locate = locate
        self._crops = crops
        self._random_crop = random_crop
        self._seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TrainingSample:
        """Return one sample, or at `BLANK` a single token of which nothing is trained.

        Raises:
            UserError: an image cannot be read, or its labels do not fit the tower.
        """
        if index == BLANK:
            return _blank()
        epoch, sample = divmod(int(index), len(self.rows))
        row = self.rows[sample]
        random = generator(self._seed, epoch, sample)
        visual_tokens = self.grid[0] * self.grid[1]
        images, patches, words = [], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for position, image_id in enumerate(row["images"]):
            view = self.views(image_id)[random.integers(self._crops + 1)] if self._crops else image_id
            given, box = self._given(view, row["id"], random)
            images.append(given)
            if self.labels and (labels := self.labels.of(view, self.grid, box)) is not None:
                sea = self.labels.sea
                drawn = draw(labels.word_ids, labels.scores, self.grid, random, window=sea.window, ragged=sea.ragged)
                patches.append(drawn.patches + position * visual_tokens)
                words.append(drawn.words)
        ids, trained = self._expanded(row)
        return TrainingSample(
            row=sample,
            epoch=epoch,
            input_ids=ids,
            trained=trained,
            images=torch.stack(images) if images else None,
            patches=np.concatenate(patches),
            words=np.concatenate(words),
            targets=[self.targets[image_id] for image_id in row["images"]] if self.targets is not None else [],
        )

    def collator(self, pad: int, seed: int) -> "Collator":
        """Return the collator of these samples, see `Collator`."""
        return Collator(self, pad, seed)

    def image(self, view: str, sample: str, random: np.random.Generator | None = None) -> tuple[Image.Image, CropBox]:
        """Read an upright image or its crop, with the part of it that the tower's grid will cover.

        A random crop is taken only if `random` is given.
        """
        image_id, number = image_and_crop(view) if self._crops else (view, 0)
        image = sample_image(self.locate(image_id), sample, self._advice, self.read)
        crop = WHOLE
        if number:
            image, crop = labelled_crop(image, image_id, number)
        elif self._random_crop is not None and random is not None:
            image, crop = random_square(image, self._random_crop, random)
        box = geometry.processor_box(self.processor.image_processor, *image.size)
        return image, inside(reached(box, self._reach), crop)

    def views(self, image_id: str) -> list[str]:
        """List the view names of an image, which are the image itself and its labelled crops."""
        return [crop_id(image_id, number) for number in range(self._crops + 1)]

    def _given(self, view: str, sample: str, random: np.random.Generator) -> TowerInput:
        if self.kept is not None:
            return self.kept[view]
        image, box = self.image(view, sample, random)
        return TowerInput(self.pixels(image), box)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Make the tower's input, float32 (3, height, width), from an upright image."""
        values: torch.Tensor = self.processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        return values

    def _expanded(self, row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, trained = torch.tensor(row["input_ids"]), torch.tensor(row["trained"], dtype=torch.bool)
        repeats = torch.where(ids == self.processor.image_token_id, self.grid[0] * self.grid[1], 1)
        return ids.repeat_interleave(repeats), trained.repeat_interleave(repeats)


def sample_image(
    path: Path, sample: str, advice: str, read: Callable[[Path], DecodedImage] = read_image
) -> Image.Image:
    """Read the upright image of a sample.

    Raises:
        UserError: it cannot be read; the line ends with `advice`.
    """
    try:
        return read(path).image
    except BadImageError as error:
        raise UserError(f"{path}: sample {sample!r}: expected an image; {error.message}; {advice}") from error


def next_tokens(ids: torch.Tensor, trained: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `predict` and `targets` of a `Batch` from token ids and what is trained of them, both (B, L)."""
    # Position t predicts token t + 1, so the mask and the targets are shifted by one.
    rows, columns = trained[:, 1:].nonzero().unbind(1)
    return rows * ids.shape[1] + columns, ids[:, 1:][trained[:, 1:]]


def _blank() -> TrainingSample:
    none = np.zeros(0, np.int64)
    token, trained = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)
    return TrainingSample(
        row=BLANK, epoch=0, input_ids=token, trained=trained, images=None, patches=none, words=none, targets=[]
    )


class Collator:
    """Collate samples to a right-padded `Batch` with one patch per word among all of them (SEA section 4.2).

    Args:
        pad: token id that fills up shorter samples.
        visual_tokens: m of an image.
        data: the samples' dataset; its labels say when two words count as the same.
        seed: seed of what is drawn for a batch as a whole.
    """

    def __init__(self, data: TrainingData, pad: int, seed: int) -> None:
        self._pad = pad
        self._visual_tokens = data.grid[0] * data.grid[1]
        self._labels = data.labels
        self._features = data.kept is not None
        self._seed = seed

    def __call__(self, samples: Sequence[TrainingSample]) -> Batch:
        """Collate samples to a `Batch`.

        Blank samples are dropped, unless all samples are blank. Then one of them stays.
        """
        samples = [sample for sample in samples if sample["row"] != BLANK] or samples[:1]
        rows = [sample["row"] for sample in samples if sample["row"] != BLANK]
        ids = [sample["input_ids"] for sample in samples]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self._pad)
        trained = torch.nn.utils.rnn.pad_sequence([sample["trained"] for sample in samples], batch_first=True)
        lengths = torch.tensor([len(one) for one in ids])
        predict, targets = next_tokens(padded, trained)
        random = np.random.default_rng((self._seed, samples[0]["epoch"], *rows))
        batch = Batch(
            input_ids=padded,
            attention_mask=(torch.arange(padded.shape[1]) < lengths[:, None]).long(),
            predict=predict,
            targets=targets,
            rows=torch.tensor(rows, dtype=torch.int64),
            seed=self._seed_of(samples),
        )
        images = [sample["images"] for sample in samples if sample["images"] is not None]
        if images and self._features:
            batch["features"] = torch.cat(images)
        elif images:
            batch["pixel_values"] = torch.cat(images)
        if taught := [one for sample in samples for one in sample["targets"]]:
            batch["refined"] = torch.from_numpy(np.stack([one.refined for one in taught]))
            batch["attention"] = torch.from_numpy(np.stack([one.attention for one in taught]))
        if self._labels is not None:
            batch["sea_patches"], batch["sea_words"] = self._pairs(samples, self._labels, random)
        return batch

    def _seed_of(self, samples: Sequence[TrainingSample]) -> int:
        """Draw the batch's seed from its first sample alone.

        The first of several processes then draws the same seed as a single process with all the samples would.
        """
        first = samples[0]
        return int(np.random.default_rng((self._seed, first["epoch"], first["row"] + 1)).integers(2**31))

    def _pairs(
        self, samples: Sequence[TrainingSample], labels: TrainingLabels, random: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images = [0 if sample["images"] is None else len(sample["images"]) for sample in samples]
        starts = self._visual_tokens * np.concatenate([[0], np.cumsum(images)[:-1]]).astype(np.int64)
        patches = np.concatenate([sample["patches"] + start for sample, start in zip(samples, starts, strict=True)])
        words = np.concatenate([sample["words"] for sample in samples])
        if not labels.sea.gather:  # with `gather` the loss term keeps one patch per word over all processes
            keys = words if labels.token_keys is None else labels.token_keys[words]
            kept = one_patch_per_word(keys, random)
            patches, words = patches[kept], words[kept]
        return torch.from_numpy(patches), torch.from_numpy(words)

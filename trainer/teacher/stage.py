"""Compute a teacher's targets for a shard of images, as BASIC's Eq. 4 and 5 see them in an LLM that reads a caption.

Shapes: B images of a batch, m visual tokens, d the LLM's width.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sea_pipeline.core.devices import exact_float32
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Advance
from sea_pipeline.execution.stage import ShardResult, Stage
from sea_pipeline.inputs.pixels import BadImageError, DecodedImage, decode_image
from sea_pipeline.inputs.samples import BadSample, Sample
from sea_pipeline.inputs.sources import Source
from sea_pipeline.inputs.sources.files import in_utf8
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.paths import Place
from trainer.data.dataset import Collator, TrainingData, TrainingSample
from trainer.losses.basic_term import BasicTerm
from trainer.model.aligned_llava import AlignedLlava
from trainer.targets.codecs import Codec, codec_sha256
from trainer.targets.store import CODEC, TargetRow, Targets, TargetWriter

TEACH_VERSION = 1
"""Part of every fingerprint; raise it when the same settings would give other targets."""


class _Image(NamedTuple):
    """A planned image with the first sample that shows it."""

    sample: Sample
    encoded: TrainingSample
    position: int
    """Index of the image among the sample's images."""


class Teacher:
    """Compute V^ (m, d) and a (m,) of images, as the first sample that shows an image yields them.

    Args:
        model: a frozen model; it needs only the layers that the term reads.
        term: the loss term with its supervision, see `BasicTerm`.
        data: the samples, without crops.
        batch_size: images per forward pass.
    """

    def __init__(self, model: AlignedLlava, term: BasicTerm, data: TrainingData, batch_size: int) -> None:
        self.data = data
        self.device = model.device.type
        self._model = model
        self._term = term
        self._batch_size = batch_size
        self._collate = Collator(data, pad=0, seed=0)
        self._first: dict[str, tuple[int, int]] = {}
        for row, images in enumerate(data.rows["images"]):
            for position, image_id in enumerate(images):
                self._first.setdefault(image_id, (row, position))

    def read_from(self, source: Source, root: Path) -> dict[Path, bytes]:
        """Read images through a source from now on, and return where the sha256 of each will be.

        Args:
            source: reads the images, whose `uri`s start at `root`.
            root: the folder of the images.
        """
        hashes: dict[Path, bytes] = {}

        def read(path: Path) -> DecodedImage:
            decoded = decode_image(source.read(in_utf8(path.relative_to(root).as_posix())))
            hashes[path] = decoded.sha256
            return decoded

        self.data.read = read
        return hashes

    def __call__(
        self, samples: Sequence[Sample], bad: list[BadSample], advance: Advance = lambda _: None
    ) -> Iterator[tuple[Sample, Targets]]:
        """Yield the targets of the good images in their order, and append the others to `bad`."""
        for start in range(0, len(samples), self._batch_size):
            images = [
                found for sample in samples[start : start + self._batch_size] if (found := self._read(sample, bad))
            ]
            good = self._targets(images) if images else []
            for image, targets in zip(images, good, strict=True):
                if np.isfinite(targets.refined).all() and np.isfinite(targets.attention).all():
                    yield image.sample, targets
                else:
                    message = "the model gives numbers that are not finite"
                    bad.append(BadSample(image.sample, "teach", "NotFinite", message))
            advance(len(samples[start : start + self._batch_size]))

    def _read(self, sample: Sample, bad: list[BadSample]) -> _Image | None:
        if sample.problem is not None:
            bad.append(BadSample(sample, "list", "BadName", sample.problem))
            return None
        if sample.image_id not in self._first:
            message = "every sample that shows it is left out, or cut off before it; raise --max-length"
            bad.append(BadSample(sample, "list", "CutOff", message))
            return None
        row, position = self._first[sample.image_id]
        try:
            return _Image(sample, self.data[row], position)
        except UserError as error:
            if not isinstance(error.__cause__, BadImageError):
                raise
            bad.append(self._fault(sample, row, error.__cause__))
            return None

    def _fault(self, sample: Sample, row: int, cause: BadImageError) -> BadSample:
        """Tell which image of a row cannot be read, the sample's own or another, after one could not."""
        for name in dict.fromkeys((sample.image_id, *self.data.rows[row]["images"])):
            try:
                self.data.read(self.data.locate(name))
            except BadImageError as error:
                if name == sample.image_id:
                    cause = error
                    break
                message = f"its sample also shows {name}, which cannot be used: {error.message}"
                return BadSample(sample, "list", "OtherImage", message)
        return BadSample(sample, cause.stage, cause.error, cause.message, cause.sha256)

    @exact_float32()
    @torch.no_grad()
    def _targets(self, images: Sequence[_Image]) -> list[Targets]:
        model, device = self._model, self._model.device
        batch: dict[str, Any] = send_to_device(dict(self._collate([image.encoded for image in images])), device)
        columns = batch["input_ids"] == model.config.image_token_id
        visual = model.projected(model.tower_output(batch["pixel_values"]))
        encoded = BaseModelOutputWithPooling(pooler_output=list(visual))  # type: ignore[arg-type]
        with self._term.watching(batch, columns, model.get_input_embeddings()) as recorder:
            # No attention mask, as in training: pads are on the right, where causal attention does not see them.
            # And V as in training: the projector is float32, whatever the tower and the LLM are.
            model.model(input_ids=batch["input_ids"], mm_encoder_outputs={"image": encoded}, use_cache=False)
        tokens = self.data.grid[0] * self.data.grid[1]
        refined = recorder.refined.float().view(-1, tokens, recorder.refined.shape[-1]).cpu().numpy()
        attention = self._term.degrees(recorder.attention.view(-1, tokens)).float().cpu().numpy()
        starts = np.cumsum([0, *(len(image.encoded["images"]) for image in images)])[:-1]  # type: ignore[arg-type]
        positions = [int(start) + image.position for start, image in zip(starts, images, strict=True)]
        return [Targets(refined[position], attention[position]) for position in positions]


class TeachStage(Stage):
    """Write a shard of targets."""

    def __init__(
        self, teacher: Teacher, codec: Codec, image_root: Path, name: str, samples: dict[str, list[float]]
    ) -> None:
        self._teacher = teacher
        self._codec = codec
        self._image_root = image_root
        self._name = name
        self._said = {"codec_sha256": codec_sha256(codec), "teacher": samples}

    def describe(self) -> dict[str, str]:
        """Return the device and the codec."""
        return {"device": self._teacher.device, "backend": self._name}

    def process(
        self,
        samples: list[Sample],
        source: Source,
        target: Path,
        footer: dict[str, Any],
        advance: Advance,
    ) -> ShardResult:
        """Write the targets of one shard to the file `target`."""
        seconds: defaultdict[str, float] = defaultdict(float)
        bad: list[BadSample] = []
        rows, first = 0, None
        grid, locate = self._teacher.data.grid, self._teacher.data.locate
        hashes = self._teacher.read_from(source, self._image_root)
        begun = time.perf_counter()
        with TargetWriter(target, grid[0] * grid[1], self._codec) as writer:
            for sample, targets in self._teacher(samples, bad, advance):
                seconds["teach"] += time.perf_counter() - begun
                begun = time.perf_counter()
                sha256 = hashes[locate(sample.image_id)]
                writer.add(TargetRow(sample.image_id, sample.uri, sha256, targets))
                first, rows = first or sha256.hex(), rows + 1
                seconds["write"] += time.perf_counter() - begun
                begun = time.perf_counter()
            writer.set_footer({**footer, **self._said})
        return ShardResult(rows, bad, dict(seconds), first)

    def finish(self, ledger: Ledger) -> list[Place]:
        """Return the codec's file, which all shards need."""
        return [ledger.root / CODEC]

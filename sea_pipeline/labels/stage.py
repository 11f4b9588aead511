"""Label one shard by decoding, encoding, searching and writing its images (SEA section 4.1).

Three kinds of threads work at the same time, so that none waits for the others. Some decode the images of later
batches. Others encode and search, each a batch of its own, one thread for a GPU or one for each core of a CPU. The
caller's thread writes. Images are read in the order of their bytes in the input, and written in plan order.

Shapes: B images, P patches, D embedding width, n labels a patch.
"""

import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sea_pipeline.core.devices import exact_float32
from sea_pipeline.core.parallel import ThreadPool, batched, prefetched_map, torch_thread_pool
from sea_pipeline.core.progress import Advance
from sea_pipeline.encoders.base import Encoder, finite_images
from sea_pipeline.execution.stage import ShardResult
from sea_pipeline.inputs.crops import LEAST_AREA, WHOLE, image_and_crop, inside, labelled_crop
from sea_pipeline.inputs.pixels import DECODE_VERSION, BadImageError, decode_image
from sea_pipeline.inputs.samples import BadSample, Sample
from sea_pipeline.inputs.sources import Source
from sea_pipeline.inputs.sources.order import reading_order
from sea_pipeline.inputs.wordlists import WordList
from sea_pipeline.labels.format import MEANS, ShardWriter, packed, read_words, unpacked, write_mean_similarity
from sea_pipeline.labels.rows import EncoderInput, LabelledBatch, Seconds, ShardRows
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import SCHEMA_VERSION
from sea_pipeline.search.exact import Backend, WordSearch
from sea_pipeline.storage.parquet import shard_footer
from sea_pipeline.storage.paths import Place
from sea_pipeline.storage.publish import publish

LABEL_VERSION = 1
"""Part of every fingerprint. Raise it when the same settings would give other labels."""
BATCH_SIZES = {"cpu": 8, "cuda": 64}
"""The most images at once, by device. On a GPU a batch takes so long that Python can issue the next one's kernels."""
_CPU_PATCHES = 1568
"""The most patches at once on a CPU, but at least one image. Larger batches gain nothing, and the last one keeps one
core busy while the others wait."""
_WORDS_PER_PART = 4096
_MOST_ENCODE_THREADS = 16
"""The most threads that encode. Each has its own buffers, and Python lets one at a time issue operations."""


class LabelStage:
    """Turns the images of a shard into word labels.

    Args:
        encoder: embeds patches and words.
        embeddings: of the word list, float32 (W, D); see `word_embeddings`.
        top_n: n, the most labels per patch.
        backend, device: see `WordSearch`.
        threads: decoding threads.
        crops: the number of labelled crops of each image among the samples, by their ids.
        schema_version: the folder's.
    """

    def __init__(
        self,
        encoder: Encoder,
        embeddings: torch.Tensor,
        *,
        top_n: int,
        backend: Backend,
        device: str,
        threads: int,
        crops: int = 0,
        schema_version: int = SCHEMA_VERSION,
    ) -> None:
        self.search = WordSearch(embeddings, top_n=top_n, sign=encoder.sign, backend=backend, device=device)
        self._encoder = encoder
        self._embeddings = embeddings
        self._top_n = top_n
        self._decode_threads = threads
        self._crops = crops
        self._schema_version = schema_version
        self.device = device
        kind = torch.device(device).type
        fitting = max(1, _CPU_PATCHES // (encoder.grid[0] * encoder.grid[1]))
        self.batch_size = min(BATCH_SIZES[kind], fitting) if kind == "cpu" else BATCH_SIZES[kind]
        """The number of images that are encoded and searched at once."""
        self.encode_threads = min(torch.get_num_threads(), _MOST_ENCODE_THREADS) if kind == "cpu" else 1
        """The number of threads that encode and search."""
        self.at_once = 2 if kind == "cuda" else 1
        """The number of shards that are done at once."""
        self._pinned = kind == "cuda"
        self._loading = threading.Lock()

    def describe(self) -> dict[str, str]:
        """Return the device, and the search backend once it is chosen."""
        return {"device": self.device, "backend": self.search.backend}

    @staticmethod
    def fields(encoder: Encoder, words: WordList, top_n: int, crops: int = 0) -> dict[str, Any]:
        """Return, by name, everything that decides the labels, and nothing else."""
        cropped = {"crops": {"version": 1, "per_image": crops, "least_area": LEAST_AREA}} if crops else {}
        return cropped | {
            "label_version": LABEL_VERSION,
            "decode_version": DECODE_VERSION,
            "encoder": dict(encoder.fields()),
            "grid": list(encoder.grid),
            "sign": encoder.sign,
            "search": "exact: ranked by float64 scores, ties to the lower word id",
            "top_n": top_n,
            "wordlist": {"sha256": words.sha256, "words": len(words)},
        }

    def process(
        self,
        samples: list[Sample],
        source: Source,
        target: Path,
        footer: dict[str, Any],
        advance: Advance,
    ) -> ShardResult:
        """Label one shard into the file `target`.

        The first shard waits for the encoder to load. See `Stage`.
        """
        seconds = Seconds(float)
        with _timed(seconds, "load"), self._loading:
            self._encoder.load()
        bad: list[BadSample] = []
        patches = self._encoder.grid[0] * self._encoder.grid[1]
        order = reading_order(samples, source)
        with (
            exact_float32(),
            ShardWriter(target, patches, self._top_n, self._schema_version) as writer,
            ShardRows(samples, writer, target.parent, self._encoder.width) as rows,
            closing(self._decoded(order, source, bad, seconds, advance)) as decoded,
            torch_thread_pool(self.encode_threads) as pool,
        ):
            stacked = ((batch, self._stacked(batch)) for batch in batched(decoded, self.batch_size))
            for found in prefetched_map(
                pool, lambda given: self._labelled(*given), stacked, 2 * self.encode_threads - 1
            ):
                advance(len(found.items) + len(found.rest))
                for part, spent in found.seconds.items():
                    seconds[part] += spent / self.encode_threads  # the threads work at the same time
                bad += [_not_finite(item) for item in found.rest]
                with _timed(seconds, "write"):
                    rows.add_batch(found, bad)
            rows.pass_over(bad)
            writer.set_footer({**footer, "patches": rows.count * patches, "patch_sum": packed(rows.patch_sum)})
        return ShardResult(rows.count, rows.bad(), dict(seconds), rows.first_sha256)

    def finish(self, ledger: Ledger) -> list[Place]:
        """Write `words.parquet`, each word with its mean similarity over all patches, from the shards' footers.

        The mean of s over patches is sign * t_j · mean(v), which takes one product of the words with the mean patch.
        """
        footers = []
        for commit in ledger.commits():
            with ledger.reading(commit.files[0]):
                footers.append(shard_footer(ledger.shard_path(commit.shard)))
        patch_sum = sum(torch.from_numpy(unpacked(footer["patch_sum"])) for footer in footers)
        count = max(1, sum(footer["patches"] for footer in footers))
        parts = torch.split(self._embeddings, _WORDS_PER_PART)  # in parts, to avoid a copy of all words in float64
        mean = torch.cat([part.double() @ (patch_sum / count) for part in parts]) * self._encoder.sign
        with publish(ledger.root / MEANS, ledger.root) as scratch:
            write_mean_similarity(scratch, read_words(ledger.root), mean.float().numpy())
        return [ledger.root / MEANS]

    def _decoded(
        self,
        samples: Iterable[Sample],
        source: Source,
        bad: list[BadSample],
        seconds: Seconds,
        advance: Advance,
    ) -> Generator[EncoderInput]:
        """Yield the good images in their order, decoded ahead in threads, and append the bad ones to `bad`."""

        def decode(sample: Sample) -> tuple[EncoderInput | BadSample, float]:
            begun = time.thread_time()
            decoded = self._decode(sample, source)
            return decoded, time.thread_time() - begun

        with ThreadPool(max(self._decode_threads, source.readers), thread_name_prefix="decode") as pool:
            for decoded, spent in prefetched_map(pool, decode, samples, 2 * self.batch_size * self.encode_threads):
                seconds["decode"] += spent
                if isinstance(decoded, BadSample):
                    bad.append(decoded)
                    advance(1)
                else:
                    yield decoded

    def _decode(self, sample: Sample, source: Source) -> EncoderInput | BadSample:
        if sample.problem is not None:
            return BadSample(sample, "list", "BadName", sample.problem)
        try:
            image, sha256 = decode_image(source.read(sample.uri))
            image_id, number = image_and_crop(sample.image_id) if self._crops else (sample.image_id, 0)
            shown, crop = labelled_crop(image, image_id, number) if number else (image, WHOLE)
            pixels = self._encoder.preprocess(shown)
        except BadImageError as error:
            return BadSample(sample, error.stage, error.error, error.message, error.sha256)
        return EncoderInput(sample, sha256, image.size, pixels.values, inside(pixels.crop_box, crop))

    def _stacked(self, batch: list[EncoderInput]) -> torch.Tensor:
        """Stack the encoder's input, uint8 (B, S, S, 3), in pinned memory if a GPU is to fetch it."""
        first = batch[0].pixels
        pixels = torch.empty(len(batch), *first.shape, dtype=torch.uint8, pin_memory=self._pinned)
        np.stack([item.pixels for item in batch], out=pixels.numpy())
        return pixels

    def _labelled(self, batch: list[EncoderInput], pixels: torch.Tensor) -> LabelledBatch:
        seconds = Seconds(float)
        with _timed(seconds, "encode"):
            vectors = self._encoder.patches(pixels)
            finite = finite_images(self._encoder, vectors)
        items, rest = (
            [item for item, good in zip(batch, finite, strict=True) if good == wanted] for wanted in (True, False)
        )
        with _timed(seconds, "search"):
            # Search all patches of the batch as one matrix, (items · P, D).
            vectors = vectors[finite] if rest else vectors
            found = self.search(vectors.flatten(0, 1))
            word_ids, scores = (part.view(*vectors.shape[:2], self._top_n) for part in found)
            # The sum of v over an image's patches, from which `finish` gets the mean of s (SEA Fig. 6b).
            patch_sums = vectors.sum(1, dtype=torch.float64).cpu()
        return LabelledBatch(items, rest, word_ids, scores, patch_sums, seconds)


def _not_finite(item: EncoderInput) -> BadSample:
    return BadSample(item.sample, "encode", "NotFinite", "the encoder gives numbers that are not finite", item.sha256)


@contextmanager
def _timed(seconds: Seconds, part: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[part] += time.perf_counter() - begun

"""`label` beside what its parts allow, and its shards beside torch.save."""

import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from sea_pipeline import open_labels
from sea_pipeline.core.parallel import torch_thread_pool
from sea_pipeline.encoders import load_encoder
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.execution.local import run
from sea_pipeline.inputs.pixels import read_image
from sea_pipeline.inputs.sources import list_samples
from sea_pipeline.inputs.wordlists import load_wordlist
from sea_pipeline.labels.format import KIND, LabelRow, ShardWriter
from sea_pipeline.labels.stage import BATCH_SIZES, LabelStage
from sea_pipeline.output.begin import open_or_create
from sea_pipeline.search.exact import WordSearch
from tests.bench.measure import Figure, in_turn

TOP_N = 10


def figures() -> Iterator[Figure]:
    """label.efficiency and label.bytes_ratio, on `$SEA_BENCH_PHOTOS` or on crops of the sample photos."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = os.environ.get("SEA_BENCH_PHOTOS") or str(crops(folder / "photos", 64))
        yield from _figures(folder, photos)


def crops(folder: Path, count: int) -> Path:
    """JPEGs of 640 x 480 pixels at most, cropped from the sample photos: many different pictures out of eleven."""
    folder.mkdir()
    listing = list_samples(None)
    random = np.random.default_rng(0)
    for number in range(count):
        photo = read_image(Path(listing.root) / listing.samples[number % len(listing.samples)].uri).image
        share = random.uniform(0.4, 0.9)
        width, height = int(photo.width * share), int(photo.height * share)
        left, top = int(random.integers(photo.width - width)), int(random.integers(photo.height - height))
        crop = photo.crop((left, top, left + width, top + height))
        crop.resize((640, 480)).save(folder / f"{number:04d}.jpg", quality=90)
    return folder


def _figures(folder: Path, photos: str) -> Iterator[Figure]:
    encoder, words = load_encoder("packaged", "cpu"), load_wordlist("2of12")
    embeddings = word_embeddings(encoder, words)
    threads = os.cpu_count() or 1
    stage = LabelStage(encoder, embeddings, top_n=TOP_N, backend="auto", device="cpu", threads=threads)
    listing = list_samples(photos)
    paths = [Path(listing.root) / sample.uri for sample in listing.samples]
    runs = iter(range(1000))

    def label() -> None:
        fields = LabelStage.fields(encoder, words, TOP_N)
        companions = {"words.txt": words.text().encode()}
        out = folder / f"out{next(runs)}"
        run(open_or_create(out, KIND, fields, listing, 2048, companions), stage, max_bad=0)

    def decode() -> list[np.ndarray]:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda path: encoder.preprocess(read_image(path).image).values, paths))

    batches = torch.split(torch.from_numpy(np.stack(decode())), BATCH_SIZES["cpu"])
    vectors = [encoder.patches(batch).flatten(0, 1) for batch in batches]
    search = WordSearch(embeddings, top_n=TOP_N, sign=encoder.sign)
    labels = [search(batch) for batch in vectors]

    def write() -> None:
        with ShardWriter(folder / "alone.parquet", 196, TOP_N) as writer:
            stored = zip(*(torch.cat(part).split(196) for part in zip(*labels, strict=True)), strict=True)
            for path, (ids, scores) in zip(paths, stored, strict=True):
                writer.add(LabelRow(path.name, path.name, bytes(32), 1, 1, (0, 0, 1, 1), ids.numpy(), scores.numpy()))
            writer.set_footer({})

    def by_lanes(work: Callable[[torch.Tensor], object], parts: Sequence[torch.Tensor]) -> None:
        with torch_thread_pool(stage.encode_threads) as pool:
            list(pool.map(work, parts))

    times = in_turn(
        label,
        decode,
        lambda: by_lanes(encoder.patches, batches),
        lambda: by_lanes(search, vectors),
        write,
    )
    count = len(paths)
    parts = ", ".join(
        f"{name} {spent / count * 1e3:.1f}"
        for name, spent in zip(("decode", "encode", "search", "write"), times[1:], strict=True)
    )
    yield Figure(
        "label.efficiency",
        sum(times[1:]) / times[0],
        "x",
        f"its parts alone, one after the other: {parts} ms per image; label {count / times[0]:.1f} images/s",
    )

    store = open_labels(folder / "out0")
    naive = sum(_torch_save_bytes(store[image_id].word_ids, store[image_id].scores) for image_id in store.ids) / count
    ours = sum(file["bytes"] for file in store.manifest["shards"]) / count
    yield Figure(
        "label.bytes_ratio",
        naive / ours,
        "x",
        f"torch.save of int64 ids and float32 scores, a file per image: {naive:,.0f} B; ours {ours:,.0f} B",
    )


def _torch_save_bytes(word_ids: np.ndarray, scores: np.ndarray) -> int:
    buffer = io.BytesIO()
    torch.save({"words": torch.from_numpy(word_ids).long(), "scores": torch.from_numpy(scores)}, buffer)
    return len(buffer.getvalue())

"""The exact search beside FAISS's flat index and beside torch.mm and topk, on photos and a whole word list."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from sea_pipeline.encoders import load_encoder
from sea_pipeline.encoders.packaged import PackagedEncoder
from sea_pipeline.encoders.word_cache import word_embeddings
from sea_pipeline.inputs.pixels import read_image
from sea_pipeline.inputs.wordlists import load_wordlist
from sea_pipeline.search.exact import WordSearch
from tests.bench.bench_label import crops
from tests.bench.measure import Figure, in_turn
from tests.bench.script import words_of_patches

TOP_N = 10
IMAGES = 16


class JoinedEncoder(PackagedEncoder):
    """The packaged encoder with words embedded in two sentences: 768 dimensions, as many as CLIP-L's; or in three."""

    def __init__(self, device: str, sentences: int = 2) -> None:
        super().__init__(device)
        self.width = sentences * PackagedEncoder.width
        self._sentences = ("{}", "a photo of a {}", "a picture that shows a {}")[:sentences]

    def fields(self) -> Mapping[str, Any]:
        """See `Encoder.fields`."""
        return {**super().fields(), "text_prompt": list(self._sentences)}

    def words(self, words: Sequence[str], advance: Callable[[int], None] = lambda _: None) -> torch.Tensor:
        """See `Encoder.words`."""
        encoder = PackagedEncoder(self.device)
        parts = [encoder.words([sentence.format(word) for word in words]) for sentence in self._sentences]
        return torch.cat(parts, -1) / len(parts) ** 0.5


def figures() -> Iterator[Figure]:
    """search.speedup_faiss, search.over_torch and search.exact_rate at 768 dimensions, the same of search.packaged at
    its 384, and of search.crowded, whose patches point where words hardly differ, as random towers' do."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = sorted(crops(Path(scratch) / "photos", IMAGES).iterdir())
        images = [PackagedEncoder.preprocess(read_image(path).image).values for path in paths]
    pixels = torch.from_numpy(np.stack(images))
    for name, encoder in (("search", JoinedEncoder("cpu")), ("search.packaged", load_encoder("packaged", "cpu"))):
        words = word_embeddings(encoder, load_wordlist("2of12"))
        yield from _figures(name, words, encoder.patches(pixels).flatten(0, 1))
        if name == "search":
            random = torch.randn(1 + pixels.shape[0] * 196, words.shape[-1], generator=torch.Generator().manual_seed(0))
            yield from _figures("search.crowded", words, F.normalize(random[:1] + random[1:], dim=-1))


def _figures(name: str, words: torch.Tensor, patches: torch.Tensor) -> Iterator[Figure]:
    count, width = patches.shape

    index = faiss.IndexFlatIP(width)
    index.add(words.numpy())
    queries = patches.numpy()
    search = WordSearch(words, top_n=TOP_N, sign=1)
    flat, plain, ours = in_turn(
        lambda: index.search(queries, TOP_N),
        lambda: words_of_patches(patches.unsqueeze(0), words, 1, TOP_N),
        lambda: search(patches),
    )
    yield Figure(
        f"{name}.speedup_faiss",
        flat / ours,
        "x",
        f"faiss.IndexFlatIP in float32, {count / flat:,.0f} patches/s at {width} dimensions; "
        f"ours with {search.backend} {count / ours:,.0f}",
    )
    yield Figure(
        f"{name}.over_torch",
        plain / ours,
        "x",
        f"torch.mm and topk in float32 by 512 patches, {count / plain:,.0f} patches/s; ours {count / ours:,.0f}",
    )

    search.fallbacks = 0
    found, _ = search(patches)
    similarities = queries.astype(np.float64) @ words.numpy().astype(np.float64).T
    ids = np.arange(len(words))
    right = sum(
        np.array_equal(np.lexsort((ids, -row.round(12)))[:TOP_N], mine)
        for row, mine in zip(similarities, found.numpy(), strict=True)
    )
    yield Figure(
        f"{name}.exact_rate",
        right / count,
        "share",
        f"the same ids in the same order as float64, {count:,} patches; {search.fallbacks} needed the full scores",
    )

"""The exact search beside FAISS's flat index, on the embeddings of real words and mixtures of them."""

from collections.abc import Iterator

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from sea_pipeline.encoders import load_encoder
from sea_pipeline.encoders.cache import word_embeddings
from sea_pipeline.search import WordSearch
from sea_pipeline.wordlists import load_wordlist
from tests.bench.measure import Figure, in_turn

TOP_N = 10
PATCHES = 3136


def figures() -> Iterator[Figure]:
    """search.speedup_faiss and search.exact_rate."""
    words = word_embeddings(load_encoder("packaged", "cpu"), load_wordlist("2of12"))
    random = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(words), (PATCHES, 5), generator=random)
    weights = torch.rand(PATCHES, 5, 1, generator=random) ** 2
    patches = F.normalize((words[chosen] * weights).sum(1), dim=-1)

    index = faiss.IndexFlatIP(words.shape[-1])
    index.add(words.numpy())
    queries = patches.numpy()
    search = WordSearch(words, top_n=TOP_N, sign=1, backend="torch")
    flat, ours = in_turn(lambda: index.search(queries, TOP_N), lambda: search(patches))
    yield Figure(
        "search.speedup_faiss",
        flat / ours,
        "x",
        f"faiss.IndexFlatIP in float32, {PATCHES / flat:,.0f} patches/s; ours with torch {PATCHES / ours:,.0f}",
    )

    found, _ = search(patches)
    similarities = queries.astype(np.float64) @ words.numpy().astype(np.float64).T
    ids = np.arange(len(words))
    right = sum(
        np.array_equal(np.lexsort((ids, -row.round(12)))[:TOP_N], mine)
        for row, mine in zip(similarities, found.numpy(), strict=True)
    )
    yield Figure(
        "search.exact_rate",
        right / PATCHES,
        "share",
        f"the same ids in the same order as float64, {PATCHES:,} patches; {search.fallbacks} needed the full scores",
    )

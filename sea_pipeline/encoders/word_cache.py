"""Compute the embeddings of words once for an encoder and a list, and keep them on disk."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sea_pipeline.core.devices import exact_float32
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Advance, Reporter
from sea_pipeline.encoders.base import Encoder
from sea_pipeline.inputs.wordlists import WordList
from sea_pipeline.storage.cache import remembered
from sea_pipeline.storage.hashing import fingerprint_of
from sea_pipeline.storage.paths import cache_folder

_FOLDER = "words"
_LOG = logging.getLogger(__name__)
_VERSION = 2
"""Part of every key. The evaluations of bfloat16 runs have written embeddings rounded to bfloat16 under keys of 1."""

_SAME = 1e-4
"""Rows whose coordinates differ by less are one embedding. Rounding changes them by 1e-6, another word by far more."""
_FEW = 1e-3
"""The share of words with an earlier word's embedding that is not mentioned. 2of12 has two of 41,242."""
_SHOWN = 5
"""At most this many pairs of words are shown."""
_UNKNOWN = 0.1
"""If different words have so few different embeddings, as a share, the encoder does not know their script."""


def word_embeddings(encoder: Encoder, words: WordList, reporter: Reporter = SILENT) -> torch.Tensor:
    """Embed a word list, T = h(W) (SEA Eq. 5), float32 (W, D), or read the embeddings from the cache.

    The cache has them if the same text encoder has embedded the same list before. Otherwise `reporter` says so first.
    It also warns if the encoder cannot tell some words of the list apart.
    """
    embeddings = text_embeddings(encoder, words.words, words.sha256, reporter)
    if reporter.shows_warnings and (line := repetitions(words.words, embeddings)):
        reporter.warning(line)
    return embeddings


def repetitions(words: Sequence[str], embeddings: torch.Tensor) -> str | None:
    """Describe in one line the words whose embedding is that of an earlier word, or return None if they are few.

    Args:
        words: W words.
        embeddings: of the words, float32 (W, D).
    """
    later, earlier = _repeated(embeddings)
    if len(later) <= _FEW * len(words):
        return None
    pairs = [(words[one], words[other]) for one, other in zip(later.tolist(), earlier.tolist(), strict=True)]
    pairs.sort(key=lambda pair: pair[0].casefold() == pair[1].casefold())  # those that differ by more come first
    shown = ", ".join(f"{one!r:.80} has that of {other!r:.80}" for one, other in pairs[:_SHOWN])
    found = f"{len(later):,} of {len(words):,} words have the embedding of an earlier word: {shown}; "
    kinds, differing = len(words) - len(later), len({word.casefold() for word in words})
    if kinds == 1 < differing or kinds <= _UNKNOWN * differing:
        return (
            f"{found}the encoder does not seem to know their script, and the labels will say nothing; give an encoder "
            "that was trained on their language"
        )
    return f"{found}they take the places of other labels of a patch; leave them out of the list"


def _repeated(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the rows that equal an earlier one but for rounding, ascending, and the earlier rows."""
    # Equal rows have equal products with a few random directions. What these bring together is compared as a whole.
    directions = torch.randn(embeddings.shape[1], 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keys = (embeddings.double() @ directions / (10 * _SAME)).round()
    _, group = torch.unique(keys, dim=0, return_inverse=True)
    rows = torch.arange(len(embeddings))
    first = torch.full_like(rows, len(rows)).scatter_reduce(0, group, rows, "amin")[group]
    later = rows[first < rows]
    later = later[(embeddings[later] - embeddings[first[later]]).abs().amax(-1) < _SAME]
    return later, first[later]


def text_embeddings(encoder: Encoder, texts: Sequence[str], sha256: str, reporter: Reporter = SILENT) -> torch.Tensor:
    """Embed texts, float32 (T, D), or read their embeddings from the cache.

    Args:
        encoder: what embeds them.
        texts: T texts.
        sha256: a hash that differs for other texts.
        reporter: shows that they are embedded, with a line and a bar, unless the cache has them.

    Raises:
        UserError: the cache cannot be written, or a text has no embedding of unit length.
    """
    key = fingerprint_of({"encoder": dict(encoder.word_fields()), "words": sha256, "version": _VERSION})

    def read(path: Path) -> torch.Tensor | None:
        cached = _read(path, key, (len(texts), encoder.width))
        if cached is not None:
            _LOG.debug("the words' embeddings are those of %s", path)
        return cached

    def make() -> torch.Tensor:
        reporter.long_work(f"embedding {len(texts):,} words once; kept in {cache_folder() / _FOLDER}")
        with reporter.progress("embedding words", len(texts)) as advance:
            return _embedded(encoder, texts, advance)

    return remembered(f"{_FOLDER}/{key}.npz", read, make, lambda made, path: _write(key, made, path))


@exact_float32()  # the key knows nothing of a caller's autocast or TF32, whichever encoder it is
def _embedded(encoder: Encoder, texts: Sequence[str], advance: Advance) -> torch.Tensor:
    embeddings = encoder.words(texts, advance).cpu().float()
    if (bad := _not_unit(embeddings)) is not None:
        raise UserError(f"the encoder gives no unit vector for the word {texts[bad]!r:.80}; leave it out of the list")
    return embeddings


def _read(path: Path, key: str, shape: tuple[int, int]) -> torch.Tensor | None:
    try:
        # The file is a zip archive, whose checksums are checked.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            values = torch.from_numpy(archive["embeddings"])
            made_for = str(archive.get("key", key))  # earlier versions wrote none
    except Exception:  # absent, or damaged in one of the many ways of zip files, so it is made again
        return None
    return values if made_for == key and values.shape == shape and _not_unit(values) is None else None


def _write(key: str, embeddings: torch.Tensor, path: Path) -> None:
    with path.open("wb") as file:  # an open file, because to another suffix of a path NumPy would add .npz
        np.savez(file, embeddings=embeddings.numpy(), key=np.array(key))


def _not_unit(embeddings: torch.Tensor) -> int | None:
    """Find the first row that is not finite and of unit length, or None."""
    bad = (~((embeddings.norm(dim=-1) - 1).abs() < 1e-3)).nonzero()
    return int(bad[0, 0]) if len(bad) else None

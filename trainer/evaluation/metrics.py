"""How close visual tokens are to words: label_hit, TACS, gap and meaningful, pure functions of tensors.

Shapes: P patches, n labels per patch; m visual tokens of one image; d the LLM's embedding width; V its vocabulary;
q words of the list; D the width of the label encoder's text side. All is computed in float32, within autocast too, and
without gradients. A token that is not finite gives a value that is not, never a good one.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

Measure = Literal["cosine", "l2"]


class Nearest(NamedTuple):
    """The nearest row of a table for each of k queries."""

    indices: torch.Tensor
    """(k,), int64; 0 for a query that is not finite."""
    values: torch.Tensor
    """(k,), float32: the cosine, or the L2 distance in the unit of the embeddings."""


class Meaningful(NamedTuple):
    """What `meaningful` counts."""

    share: float
    """0..1, of all visual tokens."""
    chance: float | None
    """The same share with the labels of another photo; None where there is one image only."""
    distinct: int
    """The number of distinct nearest tokens: few of them mean that the visual tokens have collapsed."""


@torch.no_grad()
def nearest(queries: torch.Tensor, table: torch.Tensor, *, measure: Measure, block: int = 2048) -> Nearest:
    """The nearest row of a table by cosine or by L2 distance; nothing of the size k x q is kept.

    Args:
        queries: (k, d), any float dtype.
        table: (q, d), any float dtype, on the device of the queries. Leave out rows that are no words or tokens.
        measure: cosine takes the highest, l2 the lowest value.
        block: rows of the table, and queries, at a time.

    Returns:
        Of equal rows the one of the lowest index, although a matmul may score them differently. The values are
        computed again from the rows found, so that they do not suffer from the matmul's rounding.

    Raises:
        ValueError: the table is empty.
    """
    if len(table) == 0:
        raise ValueError("the table has no rows; expected at least one")
    indices = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    values = torch.full((len(queries),), -torch.inf, device=queries.device)
    views = list(zip(*(torch.split(each, block) for each in (queries, indices, values)), strict=True))
    with torch.autocast(queries.device.type, enabled=False):
        for start, rows in _blocks(table, block):
            entries = rows.float() if measure == "l2" else F.normalize(rows.float(), dim=-1)
            offset = entries.square().sum(-1) / 2 if measure == "l2" else 0  # |x - t|^2 = |x|^2 - 2 (x.t - |t|^2 / 2)
            for chunk, index, value in views:
                score, place = (chunk.float() @ entries.T - offset).max(-1)
                higher = score > value
                value.copy_(torch.where(higher, score, value))
                index.copy_(torch.where(higher, place + start, index))
        lowest = _lowest_equal(table, block)
        for chunk, index, value in views:
            equal = (table[lowest[index]] == table[index]).all(-1)
            index.copy_(torch.where(equal, lowest[index], index))
            value.copy_(_value(chunk.float(), table[index].float(), measure))
    return Nearest(indices, values)


def label_hits(nearest_words: torch.Tensor, word_ids: torch.Tensor, k: int) -> tuple[int, int]:
    """label_hit@k as two counts, to be added over images: the patches whose nearest word is one of their own labels.

    Args:
        nearest_words: (P,), integer: the nearest word by cosine over the word table.
        word_ids: (P, n), integer, best first; -1 where there is no label.
        k: how many of a patch's labels count.

    Returns:
        hits and labelled patches, those with a first label; label_hit@k is hits / labelled.

    Raises:
        ValueError: k is not positive, or the shapes do not fit.
    """
    if k < 1 or word_ids.ndim != 2 or nearest_words.shape != word_ids.shape[:1]:
        raise ValueError(f"expected k >= 1, (P,) and (P, n); found {k}, {nearest_words.shape} and {word_ids.shape}")
    first = word_ids[:, :k]
    own = ((first == nearest_words.unsqueeze(-1)) & (first >= 0)).any(-1)
    labelled = word_ids[:, 0] >= 0
    return int((own & labelled).sum()), int(labelled.sum())


@torch.no_grad()
def tacs(visual: torch.Tensor, caption: torch.Tensor, best: int = 10) -> float:
    """TACS of one image (SEA v2, arXiv 2408.11813v2): the mean over the `best` tokens of their highest cosine.

    Args:
        visual: (m, d), any float dtype.
        caption: (c, d), the LLM's input embeddings of the caption's tokens, without special tokens.
        best: how many visual tokens count; all m where there are fewer.

    Returns:
        -1..1; the paper takes the mean over images.

    Raises:
        ValueError: there is no visual token or no caption token.
    """
    if min(len(visual), len(caption), best) < 1:
        raise ValueError(f"expected tokens; found {len(visual)} visual, {len(caption)} of the caption, best = {best}")
    with torch.autocast(visual.device.type, enabled=False):
        cosines = F.normalize(visual.float(), dim=-1) @ F.normalize(caption.float(), dim=-1).T
        return float(cosines.amax(-1).topk(min(best, len(visual))).values.mean())


def gap(visual: torch.Tensor, table: torch.Tensor, *, block: int = 2048) -> float:
    """D of SEA v2: the mean L2 distance from visual tokens to the nearest word, in the unit of the embeddings.

    Args:
        visual: (k, d), the tokens of one image or of many.
        table: (q, d), such as the word table.
        block: see `nearest`.

    Raises:
        ValueError: there is no visual token, or the table is empty.
    """
    if len(visual) == 0:
        raise ValueError("there are no visual tokens; expected at least one")
    return float(nearest(visual, table, measure="l2", block=block).values.mean())


@torch.no_grad()
def meaningful(
    nearest_tokens: torch.Tensor,
    whole_word: torch.Tensor,
    token_text: torch.Tensor,
    word_text: torch.Tensor,
    word_ids: torch.Tensor,
    *,
    threshold: float = 0.5,
    block: int = 1024,
) -> Meaningful:
    """An automatic stand-in for BASIC's human count of visual tokens whose nearest token describes their patch.

    A visual token counts if its nearest token is a whole word whose text embedding has a cosine of at least `threshold`
    with that of one of the patch's own labels. The denominator is all visual tokens: a patch without a label, and a
    nearest token that is no whole word, count as not meaningful. For the chance level, image i is held against the
    labels of image (i + 1) mod images at the same patch.

    Args:
        nearest_tokens: (images, m), integer below V: the nearest by cosine over the LLM's input embeddings.
        whole_word: (V,), int64: the row of each token in `token_text`, -1 where it is no whole word (`words.py`).
        token_text: (W, D), unit vectors, the label encoder's text side.
        word_text: (q, D), unit vectors, likewise.
        word_ids: (images, m, n), integer, -1 where there is no label.
        threshold: the least cosine.
        block: patches at a time, each with n vectors of width D.

    Raises:
        ValueError: there is no visual token, or the shapes do not fit.
    """

    def share(labels: torch.Tensor) -> float:
        given = (nearest_tokens, whole_word, token_text, word_text, labels)
        return float(describing(*given, threshold=threshold, block=block).double().mean())

    chance = share(word_ids.roll(-1, 0)) if len(word_ids) > 1 else None
    return Meaningful(share(word_ids), chance, len(torch.unique(nearest_tokens)))


@torch.no_grad()
def describing(
    nearest_tokens: torch.Tensor,
    whole_word: torch.Tensor,
    token_text: torch.Tensor,
    word_text: torch.Tensor,
    word_ids: torch.Tensor,
    *,
    threshold: float = 0.5,
    block: int = 1024,
) -> torch.Tensor:
    """Which visual tokens count for `meaningful`, bool (images, m); the arguments and errors are its."""
    if nearest_tokens.numel() == 0 or word_ids.shape[:2] != nearest_tokens.shape:
        raise ValueError(f"expected (images, m) and (images, m, n); found {nearest_tokens.shape} and {word_ids.shape}")
    rows = whole_word[nearest_tokens].flatten()
    counts = torch.zeros(len(rows), dtype=torch.bool)
    parts = (torch.split(each, block) for each in (rows, word_ids.flatten(0, 1), counts))
    for row, ids, count in zip(*parts, strict=True):
        kept, own = row[row >= 0], ids[row >= 0].long()
        cosines = (token_text[kept].float().unsqueeze(-2) * word_text[own.clamp(min=0)].float()).sum(-1)
        count[row.cpu() >= 0] = ((cosines >= threshold) & (own >= 0)).any(-1).cpu()
    return counts.view(nearest_tokens.shape)


def _blocks(table: torch.Tensor, block: int) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, len(table), block):
        yield start, table[start : start + block]


def _value(queries: torch.Tensor, rows: torch.Tensor, measure: Measure) -> torch.Tensor:
    if measure == "l2":
        return (queries - rows).square().sum(-1).sqrt()
    return (F.normalize(queries, dim=-1) * F.normalize(rows, dim=-1)).sum(-1)


def _lowest_equal(table: torch.Tensor, block: int) -> torch.Tensor:
    """(q,): for each row the lowest index of a row of the same 64-bit hash; equal rows have equal hashes."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (table.shape[-1],), generator=generator).to(table.device)
    hashes = [(rows.float().view(torch.int32).long() * weights).sum(-1) for _, rows in _blocks(table, block)]
    distinct, place = torch.unique(torch.cat(hashes), return_inverse=True)
    order = torch.arange(len(table), device=table.device)
    return torch.full_like(distinct, len(table)).scatter_reduce_(0, place, order, "amin")[place]

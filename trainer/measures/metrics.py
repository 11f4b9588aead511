"""Measure how close visual tokens are to words, by label_hit, TACS, gap and meaningful, as functions of tensors.

Shapes: P patches, n labels per patch; m visual tokens of one image; d the LLM's embedding width; V its vocabulary; q
words of the list; D the width of the label encoder's text side. Everything is computed in float32 without gradients,
even within autocast. A token that is not finite gives a value that is not finite, never a good one; a row of a table
that is not finite is nearest to none.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Reporter
from trainer.measures.blind_control import places_of_others

Measure = Literal["cosine", "l2"]

HIGHER_IS_BETTER = {
    "lm_loss": False,
    "tacs": True,
    "label_hit@1": True,
    "label_hit@10": True,
    "gap": False,
    "meaningful": True,
    "right_photo_gain": True,
    "lm_loss_content": False,
    "right_photo_gain_content": True,
}
"""The metrics of held-out samples by which one model is better than another. The others only help to read these."""


class Nearest(NamedTuple):
    """The nearest row of a table for each of k queries."""

    indices: torch.Tensor
    """(k,), int64: index of the nearest row; 0 for a query that is not finite."""
    values: torch.Tensor
    """(k,), float32: the cosine, or the L2 distance in units of the embeddings."""


class MeaningfulShares(NamedTuple):
    """The result of `meaningful`."""

    share: float
    """Share of all visual tokens that are meaningful, 0..1."""
    chance: float | None
    """The same share with the labels of another photo; None for a single photo."""
    distinct: int
    """Number of distinct nearest tokens. Few of them mean that the visual tokens have collapsed."""


@torch.no_grad()
def nearest(queries: torch.Tensor, table: torch.Tensor, *, measure: Measure, block: int = 2048) -> Nearest:
    """Find the nearest row of a table for each query, by cosine or by L2 distance.

    Nothing of the size k x q is kept.

    Args:
        queries: (k, d), any float dtype.
        table: (q, d), any float dtype, on the device of the queries. Leave out rows that are no words or tokens.
        measure: cosine takes the highest, l2 the lowest value.
        block: number of table rows, and of queries, in one product.

    Returns:
        The nearest rows and their values. Among equal rows the lowest index is returned, although a matmul may score
        them differently. The values are computed again from the rows found, without the matmul's rounding.

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
            # A row with NaN would be the highest of its block, and hide all others.
            whole = entries.isfinite().all(-1)
            entries = entries.where(whole.unsqueeze(-1), 0)
            # L2: |x - t|^2 = |x|^2 - 2 (x.t - |t|^2 / 2), so the nearest t has the highest x.t - |t|^2 / 2.
            half = entries.square().sum(-1) / 2 if measure == "l2" else entries.new_zeros(())
            offset = half.where(whole, torch.inf)
            for chunk, index, value in views:
                score, position = (chunk.float() @ entries.T - offset).max(-1)
                higher = score > value
                value.copy_(torch.where(higher, score, value))
                index.copy_(torch.where(higher, position + start, index))
        # Rows with equal hashes may be equal. The index moves to the lowest of them only if the rows really are.
        lowest = _lowest_equal(table, block)
        for chunk, index, value in views:
            equal = (table[lowest[index]] == table[index]).all(-1)
            index.copy_(torch.where(equal, lowest[index], index))
            value.copy_(_value(chunk.float(), table[index].float(), measure))
    return Nearest(indices, values)


def known(of_tokens: dict[str, float]) -> dict[str, float]:
    """Return metrics of the same visual tokens, as NaN if their `gap` is not finite.

    A token that is not finite has no nearest row, though `nearest` gives it an index, which may be that of a label.
    """
    return of_tokens if math.isfinite(of_tokens["gap"]) else dict.fromkeys(of_tokens, math.nan)


def warn_of_unknown(found: Mapping[str, float], reporter: Reporter) -> None:
    """Warn of metrics that are not finite."""
    names = [name for name, value in found.items() if not (math.isfinite(value) or name.endswith("_se"))]
    if names:
        reporter.warning(
            f"{', '.join(names)}: not known, because the model gives numbers that are not finite; its training has "
            "diverged, or its precision is too low for it"
        )


def check_finite(found: torch.Tensor, name: str, what: str = "visual tokens") -> None:
    """Refuse what a model with broken weights makes.

    Raises:
        UserError: a value is not finite.
    """
    if not found.isfinite().all():
        raise UserError(
            f"{name}: expected numbers as {what}; found some that are not finite; the model's training has diverged, "
            "or its precision is too low for it"
        )


def label_hits(nearest_words: torch.Tensor, word_ids: torch.Tensor, k: int) -> tuple[int, int]:
    """Count the patches whose nearest word is one of their own labels, and the labelled patches.

    Both counts are added over images, and label_hit@k is hits / labelled.

    Args:
        nearest_words: (P,), integer: the nearest word by cosine over the word table.
        word_ids: (P, n), integer, best first; -1 if there is no label.
        k: number of a patch's labels that count.

    Returns:
        Hits and labelled patches. A patch is labelled if it has a first label.

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
    """Compute TACS of one image (SEA v2, arXiv 2408.11813v2).

    A visual token's score is its highest cosine with a caption token; TACS is the mean over the `best` highest scores.

    Args:
        visual: (m, d), any float dtype.
        caption: (c, d), the LLM's input embeddings of the caption's tokens, without special tokens.
        best: number of visual tokens that count; all m if there are fewer.

    Returns:
        TACS, -1..1; the paper takes the mean over images.

    Raises:
        ValueError: there is no visual token or no caption token.
    """
    if min(len(visual), len(caption), best) < 1:
        raise ValueError(f"expected tokens; found {len(visual)} visual, {len(caption)} of the caption, best = {best}")
    with torch.autocast(visual.device.type, enabled=False):
        # (m, c) cosines; the maximum over c is a visual token's score.
        cosines = F.normalize(visual.float(), dim=-1) @ F.normalize(caption.float(), dim=-1).T
        return float(cosines.amax(-1).topk(min(best, len(visual))).values.mean())


def gap(visual: torch.Tensor, table: torch.Tensor, *, block: int = 2048) -> float:
    """Compute D of SEA v2, the mean L2 distance from visual tokens to their nearest word.

    It is in units of the embeddings.

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
    photos: Sequence[str] | None = None,
    threshold: float = 0.5,
    block: int = 1024,
) -> MeaningfulShares:
    """Measure the share of visual tokens whose nearest LLM token describes their patch.

    This is an automatic stand-in for BASIC's count by people. A visual token counts if its nearest token is a whole
    word whose text embedding has a cosine of at least `threshold` with that of one of the patch's own labels. The
    denominator is all visual tokens: a patch without a label, and a nearest token that is no whole word, count as not
    meaningful. For the chance level, each image is compared with the labels of another photo at the same patch, which
    `blind_control.others` chooses.

    Args:
        nearest_tokens: (images, m), integer below V: the nearest token by cosine over the LLM's input embeddings.
        whole_word: (V,), int64: the row of each token in `token_text`, -1 if it is no whole word (`words.py`).
        token_text: (W, D), unit vectors of the label encoder's text side for W whole words.
        word_text: (q, D), unit vectors of the label encoder's text side for the words of the list.
        word_ids: (images, m, n), integer, -1 if there is no label.
        photos: the photo of each image, because a photo may be in several samples; None if no two images are one photo.
        threshold: least cosine.
        block: number of patches in one step, each with n vectors of width D.

    Raises:
        ValueError: there is no visual token, or the shapes do not fit.
    """

    def share(labels: torch.Tensor) -> float:
        given = (nearest_tokens, whole_word, token_text, word_text, labels)
        return float(describing(*given, threshold=threshold, block=block).double().mean())

    own = share(word_ids)
    other = places_of_others(list(map(str, range(len(word_ids)))) if photos is None else photos)
    chance = share(word_ids[other]) if other else None
    return MeaningfulShares(own, chance, len(torch.unique(nearest_tokens)))


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
    """Mark the visual tokens that count for `meaningful`, bool (images, m).

    It has the arguments and errors of `meaningful`.
    """
    if nearest_tokens.numel() == 0 or word_ids.shape[:2] != nearest_tokens.shape:
        raise ValueError(f"expected (images, m) and (images, m, n); found {nearest_tokens.shape} and {word_ids.shape}")
    rows = whole_word[nearest_tokens].flatten()
    counts = torch.zeros(len(rows), dtype=torch.bool)
    parts = (torch.split(each, block) for each in (rows, word_ids.flatten(0, 1), counts))
    for row, ids, count in zip(*parts, strict=True):
        # Only patches whose nearest token is a whole word can count.
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
    """Find for each row the lowest index of a row with the same 64-bit hash, (q,).

    Equal rows have equal hashes, but not the other way round.
    """
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (table.shape[-1],), generator=generator).to(table.device)
    hashes = [(rows.float().view(torch.int32).long() * weights).sum(-1) for _, rows in _blocks(table, block)]
    distinct, position = torch.unique(torch.cat(hashes), return_inverse=True)
    order = torch.arange(len(table), device=table.device)
    return torch.full_like(distinct, len(table)).scatter_reduce_(0, position, order, "amin")[position]

"""The losses of both papers: pure functions of tensors. So far SEA's (arXiv 2408.11813).

Shapes: N patches of a batch, each with its word; d the LLM's embedding width; V its vocabulary; q words of the list.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

MAX_SCALE = 100.0
"""1 / tau never grows beyond this, as in CLIP: past it a learnable temperature runs away."""


def word_table(embeddings: torch.Tensor, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """Eq. 8: t_i, the mean of the LLM's input embeddings over the tokens of word i.

    Args:
        embeddings: (V, d), the LLM's input embedding matrix.
        tokens: for each of q words its token ids, at least one.

    Returns:
        (q, d) in the matrix's dtype, averaged in float32; no gradient flows to the embeddings.

    Raises:
        ValueError: a word has no token.
    """
    empty = [index for index, ids in enumerate(tokens) if not ids]
    if empty:
        raise ValueError(f"word {empty[0]} has no token; expected at least one for each word")
    lengths = torch.tensor([len(ids) for ids in tokens])
    flat = torch.tensor([token for ids in tokens for token in ids], device=embeddings.device)
    offsets = (lengths.cumsum(0) - lengths).to(embeddings.device)
    used, places = torch.unique(flat, return_inverse=True)
    means = F.embedding_bag(places, embeddings.detach()[used].float(), offsets, mode="mean")
    return means.to(embeddings.dtype)


def sea(visual: torch.Tensor, words: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Eq. 9: the symmetric InfoNCE between visual tokens and the embeddings of their words.

        L_a = -1/2N sum_i [log softmax_j(phi(x_i, t_j) / tau)_i + log softmax_j(phi(t_i, x_j) / tau)_i],  phi = cosine

    Args:
        visual: x, (N, d), the projector's output at the drawn patches; any float dtype, computed in float32 at least.
        words: t, (N, d), row i the word of patch i; words are distinct (`sampling.one_patch_per_word`).
        log_scale: scalar, log(1 / tau), learnable; 1 / tau is clamped at `MAX_SCALE`. The paper writes "tau = 0", which
            cannot divide: 0 is read as the start of this logarithm, so that 1 / tau starts at 1.

    Returns:
        A scalar; 0 with a graph where N is 0, so that a batch without labels steps like any other.
    """
    if len(visual) == 0:
        return visual.float().sum() + 0 * log_scale
    dtype = torch.promote_types(visual.dtype, torch.float32)
    scale = log_scale.to(dtype).exp().clamp(max=MAX_SCALE)
    similarity = F.normalize(visual.to(dtype), dim=-1) @ F.normalize(words.to(dtype), dim=-1).T  # phi(x_i, t_j)
    logits = scale * similarity
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

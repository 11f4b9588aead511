"""The losses of both papers, pure functions of tensors: SEA (arXiv 2408.11813) and BASIC.

Shapes: N patches of a batch, each with its word; m visual tokens of one image; d the LLM's embedding width; V its
vocabulary; q words of the list.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from sea_pipeline.core.devices import onednn_is_faster

MAX_SCALE = 100.0
"""The limit of 1 / tau, as in CLIP, because a learnable temperature runs away beyond it."""

SHORT = 0.1
"""A share of an ordinary token's length. Shorter tokens get less gradient than the formula gives, see `_directions`."""

_LEAST = -80.0
"""The least that a logit may be relative to the highest: e^-80 counts as nothing, and CPUs are slow with denormals."""


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32, or in its own dtype if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def word_table(embeddings: torch.Tensor, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """Compute t_i of Eq. 8, the mean of the LLM's input embeddings over the tokens of word i.

    Args:
        embeddings: (V, d), the LLM's input embedding matrix.
        tokens: for each of q words its token ids, at least one.

    Returns:
        (q, d) in the matrix's dtype, averaged in float32; no gradient flows to the embeddings.

    Raises:
        ValueError: a word has no token, or a token that is not one of V.
    """
    for index, ids in enumerate(tokens):
        if not ids:
            raise ValueError(f"word {index} has no token; expected at least one for each word")
        if not 0 <= min(ids) <= max(ids) < len(embeddings):
            raise ValueError(f"word {index}: expected tokens from 0 to {len(embeddings) - 1}; found {list(ids)}")
    if not tokens:
        return embeddings.new_empty(0, embeddings.shape[1])
    lengths = torch.tensor([len(ids) for ids in tokens])
    flat = torch.tensor([token for ids in tokens for token in ids], device=embeddings.device)
    offsets = (lengths.cumsum(0) - lengths).to(embeddings.device)
    # Only the rows that occur are converted to float32: the whole matrix may take gigabytes.
    used, places = torch.unique(flat, return_inverse=True)
    means = F.embedding_bag(places, embeddings.detach()[used].float(), offsets, mode="mean")
    return means.to(embeddings.dtype)


def sea(visual: torch.Tensor, words: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Compute Eq. 9, the symmetric InfoNCE between visual tokens and the embeddings of their words.

        L_a = -1/2N sum_i [log softmax_j(phi(x_i, t_j) / tau)_i + log softmax_j(phi(t_i, x_j) / tau)_i],  phi = cosine

    Args:
        visual: x, (N, d), the projector's output at the drawn patches; any float dtype, computed in float32 at least.
        words: t, (N, d), row i the word of patch i; words are distinct (`sampling.one_patch_per_word`).
        log_scale: scalar, log(1 / tau), learnable; 1 / tau is clamped at `MAX_SCALE`, beyond which it gets no gradient:
            clamp the parameter itself between steps, too. The paper writes "tau = 0", which cannot divide: 0 is read as
            the start of this logarithm, so that 1 / tau starts at 1.

    Tokens shorter than `SHORT` of the words' mean length get a smaller gradient than Eq. 9 gives, see `_directions`.

    Returns:
        A scalar. If N is 0, it is 0 with a graph, so that a batch without labels steps like any other.

    Raises:
        ValueError: `words` has another shape than `visual`.
    """
    _check_shapes(visual, words=(words, visual.shape))
    if len(visual) == 0:
        return visual.float().sum() + 0 * log_scale.sum()
    dtype = torch.promote_types(visual.dtype, torch.float32)
    scale = log_scale.to(dtype).clamp(max=math.log(MAX_SCALE)).exp()
    with torch.autocast(visual.device.type, enabled=False):  # its bfloat16 would cost the gradient all but two digits
        ordinary = words.detach().to(dtype).norm(dim=-1).mean()
        directions = _directions(visual.to(dtype), ordinary)
        similarity = directions @ F.normalize(words.to(dtype), dim=-1).T  # phi(x_i, t_j)
    logits = scale * similarity
    # Eq. 9: rows are the softmax over words for each patch, columns the softmax over patches for each word.
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def das(
    visual: torch.Tensor, refined: torch.Tensor, attention: torch.Tensor, *, ordinary: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute BASIC's Eq. 6, direction alignment, sum_i a_i || v_i / |v_i| - v^_i / |v^_i| ||^2.

    Args:
        visual: V, (m, d), the projector's output; any float dtype, computed in float32 at least.
        refined: V^, (m, d), the supervisory embeddings (Eq. 4); no gradient flows to them.
        attention: a, (m,), the attention degrees (Eq. 5); they sum to 1 over an image, and get no gradient.
        ordinary: scalar, the mean length of the LLM's embeddings; None for that of V^, which has gone through layers
            and may be many times longer. Tokens shorter than `SHORT` of it get a smaller gradient than Eq. 6 gives, see
            `_directions`.

    Returns:
        A scalar, the sum over the tokens given.

    Raises:
        ValueError: the shapes are not those.
    """
    _check_shapes(visual, refined=(refined, visual.shape), attention=(attention, visual.shape[:1]))
    dtype = torch.promote_types(visual.dtype, torch.float32)
    refined = refined.detach().to(dtype)
    ordinary = refined.norm(dim=-1).mean() if ordinary is None else ordinary.detach().to(dtype)
    # Eq. 6: |u - u^|^2 of two unit vectors is 2 (1 - cosine).
    difference = _directions(visual.to(dtype), ordinary) - F.normalize(refined, dim=-1)
    return (attention.detach().to(dtype) * difference.square().sum(-1)).sum()


def sds(
    visual: torch.Tensor,
    refined: torch.Tensor,
    attention: torch.Tensor,
    embeddings: torch.Tensor,
    *,
    temperature: float = 1.0,
    scale: float = 1.0,
    block: int | None = None,
    matmul_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Compute BASIC's Eq. 7, the divergence sum_i a_i KL(p_i || q_i) of distributions over the vocabulary.

    P = softmax(V^ E') and Q = softmax(V E').

    One pass over the vocabulary gives the value and the gradient together. Nothing of the size m x V is kept. With the
    means mu_p = p E and mu_q = q E, KL = (v^ - v) . mu_p - lse(v^ E') + lse(v E'), and its gradient w.r.t. v is
    mu_q - mu_p.

    Args:
        visual: V, (m, d); the only argument that gets a gradient.
        refined: V^, (m, d).
        attention: a, (m,).
        embeddings: E, (V, d), the LLM's input embeddings as it uses them, without padding rows.
        temperature: divides the logits of both; the paper has none.
        scale: what the LLM multiplies its inputs by, so V and E, but not V^; see `input_scale`.
        block: vocabulary entries at a time; None for 1024, or 4096 on CUDA, because each block costs a pass over the
            means of width d, which would take as long as the products of a small block.
        matmul_dtype: for the products with E, such as torch.bfloat16; None computes them like the rest, in the dtype of
            `visual` and in float32 at least.

    Returns:
        A scalar, the sum over the tokens given; it has no second derivative.

    Raises:
        ValueError: the shapes are not those.
    """
    _check_shapes(
        visual,
        refined=(refined, visual.shape),
        attention=(attention, visual.shape[:1]),
        embeddings=(embeddings, (len(embeddings), *visual.shape[1:])),
    )
    dtype = torch.promote_types(visual.dtype, torch.float32)
    if (temperature, scale) != (1, 1):
        # Factors of the vectors are factors of the logits, and the chain rule gives them to the gradient.
        visual = visual.to(dtype) * (scale**2 / temperature)
        refined = refined.to(dtype) * (scale / temperature)
    block = block or (4096 if visual.is_cuda else 1024)
    value: torch.Tensor = _Sds.apply(
        visual, refined.detach(), attention.detach().to(dtype), embeddings.detach(), block, matmul_dtype or dtype
    )
    return value


def _directions(tokens: torch.Tensor, ordinary: torch.Tensor) -> torch.Tensor:
    """Compute u = x / |x| for each token, with a gradient that stays bounded as x becomes short.

    The exact gradient w.r.t. x is (1 - uu') / |x|. A projector that starts at zero, such as Gemma 3's, would get
    1 / 1e-12. With R the ordinary length and r = SHORT * R, the gradient divides by r^2 / |x| instead of |x| if |x| is
    below r, and by R at most. So the gradient falls again as x becomes shorter, and a token of length 0 gets the
    gradient of an ordinary one. The values are those of the formula at any length.
    """
    ordinary = ordinary.clamp_min(1e-12)
    length = tokens.detach().norm(dim=-1, keepdim=True)
    some = length > 0
    # The length that the gradient divides by: r^2 / |x|, at most R. A token of length 0 counts as an ordinary one.
    counted = torch.minimum((SHORT * ordinary).square() / length.where(some, ordinary), ordinary)
    # Same direction, longer: the added part has no graph, so that the quotient rule sees the counted length alone.
    lengthened = tokens + tokens.detach() * (torch.maximum(length, counted) / length.where(some, ordinary) - 1)
    directions: torch.Tensor = lengthened / lengthened.norm(dim=-1, keepdim=True).where(some, ordinary)
    return directions


def _check_shapes(visual: torch.Tensor, **expected: tuple[torch.Tensor, Sequence[int]]) -> None:
    """Refuse other shapes, which would be broadcast to values that look like losses."""
    if visual.dim() != 2:
        raise ValueError(f"visual: expected two dimensions, tokens and width; found {tuple(visual.shape)}")
    for name, (tensor, shape) in expected.items():
        if tensor.shape != torch.Size(shape):
            raise ValueError(
                f"{name}: expected {tuple(shape)}, as visual is {tuple(visual.shape)}; found {tuple(tensor.shape)}"
            )


class _Sds(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        visual: torch.Tensor,
        refined: torch.Tensor,
        attention: torch.Tensor,
        embeddings: torch.Tensor,
        block: int,
        matmul_dtype: torch.dtype,
    ) -> torch.Tensor:
        queries = torch.cat([visual.to(attention.dtype), refined.to(attention.dtype)])
        with torch.autocast(visual.device.type, enabled=False):  # `matmul_dtype` decides
            mean, lse = _softmax_mean(queries, embeddings, block, matmul_dtype)
        # The vectors as the products saw them. With unrounded ones, a KL near 0 would come out below 0.
        seen = queries.to(matmul_dtype).to(queries.dtype)
        (v, v_hat), (mu_q, mu_p), (lse_q, lse_p) = seen.chunk(2), mean.chunk(2), lse.chunk(2)
        # d KL / d v = mu_q - mu_p, weighted by a: all that the backward pass needs. The loss scale comes later, so in
        # float16 most of it would round to 0. bfloat16 has the range of float32, and takes half the memory.
        kept = attention.dtype if visual.dtype == torch.float16 else visual.dtype
        ctx.save_for_backward((attention.unsqueeze(-1) * (mu_q - mu_p)).to(kept))
        # KL(p || q) = E_p[log p - log q] = (v^ - v) . mu_p - lse(v^ E') + lse(v E')
        divergence = ((v_hat - v) * mu_p).sum(-1) - lse_p + lse_q
        return (attention * divergence).sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        (by_visual,) = ctx.saved_tensors
        # A scaled loss may have a gradient beyond float16. Autograd rounds the product to the dtype of `visual`.
        return gradient * by_visual.to(gradient.dtype), None, None, None, None, None


def _softmax_mean(
    queries: torch.Tensor, embeddings: torch.Tensor, block: int, matmul_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute softmax(Q E') E, (k, d), and the logarithm of each softmax's denominator, (k,).

    It goes through E block by block, with the running maximum and sums of an online softmax.
    """
    highest = queries.new_full((len(queries), 1), -torch.inf)
    total = torch.zeros_like(highest)
    weighted = torch.zeros_like(queries)
    left = queries.to(matmul_dtype)
    for rows in torch.split(embeddings, block):
        entries = rows.to(matmul_dtype)
        share = _product(left, entries.T, queries.dtype)
        # A new maximum shrinks the sums so far by e^(old - new).
        before, highest = highest, torch.maximum(highest, share.amax(-1, keepdim=True))
        shrink = (before - highest).clamp_(min=_LEAST).exp_()
        share.sub_(highest).clamp_(min=_LEAST).exp_()
        total.mul_(shrink).add_(share.sum(-1, keepdim=True))
        weighted.mul_(shrink)
        if matmul_dtype == queries.dtype and not _by_onednn(share):
            weighted.addmm_(share, entries)
        else:
            weighted.add_(_product(share.to(matmul_dtype), entries, queries.dtype))
    # lse = max + log(sum of e^(logit - max))
    return weighted.div_(total), highest.add_(total.log_()).squeeze(-1)


def _product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Multiply left @ right into another dtype.

    On CUDA the sums, which are float32 anyway, are not rounded on the way.
    """
    if left.dtype == dtype and _by_onednn(left):
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")
        return found
    if left.is_cuda and left.dtype != dtype == torch.float32:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


def _by_onednn(left: torch.Tensor) -> bool:
    return left.device.type == "cpu" and left.dtype == torch.float32 and onednn_is_faster()

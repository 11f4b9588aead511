"""Compute BASIC's terms from one forward, whatever the sizes of its images.

Shapes: B samples, I images, T visual tokens of a forward, t of them that lie in an image, d the LLM's width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sea_pipeline.core.errors import UserError
from trainer import losses
from trainer.attach.tiles import ImageTokens
from trainer.attach.watch import ForwardResults
from trainer.losses.embeddings import llm_embeddings, ordinary_length
from trainer.losses.equations import at_least_float32
from trainer.losses.supervision import degrees, image_weights
from trainer.recipes.recipe import Loss


def basic_terms(
    names: Sequence[str],
    kept: ForwardResults,
    laid: Sequence[ImageTokens] | None,
    settings: Loss,
    embed: nn.Module,
    vocabulary: int,
    scale: float,
) -> dict[str, torch.Tensor]:
    """Compute L_das (Eq. 6) and L_sds (Eq. 7), as means over a sample's images and then over samples with images.

    Args:
        names: which of "das" and "sds" to compute.
        kept: what a forward in training mode made, with images.
        laid: where its visual tokens lie. Tokens outside all images are left out. None if this is unknown; then all
            images of a sample count as one.
        settings: settings of the terms.
        embed: the LLM's input embeddings.
        vocabulary: number of the LLM's token ids that are real ones.
        scale: what the LLM multiplies its inputs by.

    Returns:
        Scalars by name, whose gradient reaches the projector alone.

    Raises:
        UserError: the forward was in evaluation mode.
    """
    if kept.recorder is None or kept.visual is None:
        raise UserError(
            "attached.loss: das and sds learn from forwards in training mode; found one in evaluation mode; call "
            "model.train() before the forward"
        )
    at, weights = _shares(kept, laid, equal=settings.basic.degree == "equal")
    ends = kept.apart is not None and torch.is_grad_enabled()
    visual = at_least_float32(kept.visual.detach()).requires_grad_() if ends else kept.visual
    chosen, refined = visual[at], kept.recorder.refined.to(visual.device)[at]
    found = {}
    if "das" in names:
        found["das"] = losses.das(chosen, refined, weights, ordinary=ordinary_length(embed, vocabulary))
    if "sds" in names:
        embeddings, precision = llm_embeddings(embed, vocabulary), settings.sds.precision
        half = precision == "bfloat16" or (precision == "auto" and embeddings.dtype == torch.bfloat16)
        options: dict[str, Any] = {"temperature": settings.sds.temperature, "scale": scale}
        options |= {"matmul_dtype": torch.bfloat16} if half else {}
        found["sds"] = losses.sds(chosen, refined, weights, embeddings, **options)
    if ends:
        return {name: _ending_at_projector(value, visual, kept) for name, value in found.items()}
    return found


def _shares(
    kept: ForwardResults, laid: Sequence[ImageTokens] | None, *, equal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the visual tokens that count, int64 (t,), and compute their weights, (t,).

    The weight of a token is a_i of Eq. 5, normalised over its image, times the image's share of its sample.
    """
    assert kept.visual is not None and kept.columns is not None and kept.recorder is not None  # noqa: PT018
    device = kept.visual.device
    # Sample of each visual token, in the order in which they enter the LLM.
    samples = kept.columns.nonzero()[:, 0].to(device)
    if laid is None:
        lengths = kept.columns.sum(1).to(device)
        lengths = lengths[lengths > 0]
        at = torch.arange(len(samples), device=device)
    else:
        lengths = torch.tensor([one.tokens for one in laid], device=device)
        starts = (lengths.cumsum(0) - lengths).tolist()
        cells = [
            torch.from_numpy(tile.cells) + start for one, start in zip(laid, starts, strict=True) for tile in one.tiles
        ]
        at = torch.cat(cells).sort().values.to(device)
    image = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
    # An image that the mask hides has no attention, and does not count as an image of its sample.
    valid = torch.ones_like(kept.columns) if kept.valid is None else kept.valid
    seen = torch.bincount(image[valid[kept.columns].to(device)], minlength=len(lengths)) > 0
    at = at[seen[image[at]]]
    shares = image_weights(samples[lengths.cumsum(0) - lengths][seen]).to(device)
    # a_i of Eq. 5 sums to 1 over an image's tokens; the share makes a mean over images, then over samples.
    attention = kept.recorder.attention.to(device)[at]
    counts = torch.bincount(image[at], minlength=len(lengths))[seen]
    parts = (torch.ones_like(attention) if equal else attention).split(counts.tolist())
    weights = [degrees(part.unsqueeze(0))[0] * share for part, share in zip(parts, shares, strict=True)]
    return at, torch.cat(weights)


def _ending_at_projector(value: torch.Tensor, visual: torch.Tensor, kept: ForwardResults) -> torch.Tensor:
    """Return a term whose gradient reaches the projector's weights, but nothing in front of the projector.

    The gradient w.r.t. the projector's weights is the term's own. The gradient w.r.t. V goes back to the projector's
    output, through whatever puts V together. From there it goes on through the same projector on an input without a
    graph.
    """
    assert kept.made is not None and kept.apart is not None and kept.visual is not None  # noqa: PT018
    # dL/dV, then by the chain rule the gradient w.r.t. the projector's output.
    (by_visual,) = torch.autograd.grad(value, visual, retain_graph=True)
    # The loss is not scaled yet, so float16 would round small values to 0: the largest is 1024 meanwhile.
    scale = 1024 / by_visual.abs().amax().clamp_min(1e-30)
    scaled = (by_visual * scale).to(kept.visual.dtype)
    (by_made,) = torch.autograd.grad(kept.visual, kept.made, scaled, retain_graph=True)
    carried = (at_least_float32(kept.apart) * (at_least_float32(by_made) / scale)).sum()
    # d(carried)/d(weights) is the term's gradient; its value is taken off again.
    return value.detach() + carried - carried.detach()

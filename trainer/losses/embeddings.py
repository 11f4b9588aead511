"""Reads the LLM's input embeddings as the LLM uses them."""

from typing import Any, cast

import torch
from torch import nn

_LOOKED_AT = 1024
"""How many embeddings the mean length is taken over, about."""


@torch.no_grad()
def llm_embeddings(embed: nn.Module, vocabulary: int) -> torch.Tensor:
    """Return E, (V, d), the LLM's input embeddings as it uses them, without padding rows.

    Gemma's module scales them, so its weight alone is not E. An LLM's own factor is apart, see `input_scale`.

    Args:
        embed: the LLM's input embedding module.
        vocabulary: V, how many of the LLM's token ids are real ones.
    """
    weight = cast("torch.Tensor", embed.weight)
    whole = type(weight) is nn.Parameter
    if type(embed) is nn.Embedding and whole and len(weight) >= vocabulary:
        return weight[:vocabulary]
    ids = torch.arange(vocabulary, device=weight.device)
    every: torch.Tensor = embed.forward(ids) if whole else embed(ids)  # the call gathers FSDP's pieces
    return every


def input_scale(llm: Any) -> float:  # noqa: ANN401 - any decoder
    """Return the factor by which a decoder multiplies all inputs, embeddings and visual tokens alike.

    It is 1 for most. Granite's `embedding_multiplier` is 12, for example. Gemma's factor is in its embedding module.
    """
    if getattr(llm.config, "mup_enabled", False):  # AFMoE
        return float(llm.config.hidden_size**0.5)
    return float(getattr(llm, "embedding_multiplier", getattr(llm, "embedding_scale", 1.0)))


@torch.no_grad()
def ordinary_length(embed: nn.Module, vocabulary: int) -> torch.Tensor:
    """Compute the mean length of about 1,000 of the LLM's embeddings, a scalar in float32.

    It is how long a token is that the LLM knows.

    Args:
        embed: the LLM's input embedding module; under FSDP its pieces must have been gathered before.
        vocabulary: V, how many of the LLM's token ids are real ones.
    """
    ids = torch.arange(
        0, vocabulary, max(1, vocabulary // _LOOKED_AT), device=cast("torch.Tensor", embed.weight).device
    )
    mean: torch.Tensor = embed.forward(ids).float().norm(dim=-1).mean()
    return mean

"""The losses written from the papers, symbol by symbol, and numbers to compute them of."""

import torch

from tests.support.random_values import random


def sea_twin(visual: torch.Tensor, words: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Eq. 9 symbol by symbol."""
    count, tau = len(visual), 1 / log_scale.exp()

    def phi(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a / a.norm()) @ (b / b.norm())

    total = visual.new_zeros(())
    for i in range(count):
        from_visual = sum((phi(visual[i], words[j]) / tau).exp() for j in range(count))
        from_word = sum((phi(words[i], visual[j]) / tau).exp() for j in range(count))
        own = (phi(visual[i], words[i]) / tau).exp()
        total = total + torch.log(own / from_visual) + torch.log(own / from_word)
    return -total / (2 * count)


def attention(count: int) -> torch.Tensor:
    return random(count, seed=9).softmax(0)


def das_twin(visual: torch.Tensor, refined: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Eq. 6 symbol by symbol."""
    terms = [a * ((v / v.norm() - w / w.norm()) ** 2).sum() for a, v, w in zip(weights, visual, refined, strict=True)]
    return torch.stack(terms).sum()


def gradient_twin(gradient: torch.Tensor, length: float, ordinary: float, shortest: float = 0.1) -> torch.Tensor:
    """What a token of some length gets of the gradient that it has at length 1: 1 / |x|, but not without end.

    Below a tenth of the ordinary length it falls as it rose; near nothing it is that of an ordinary token.
    """
    if length < shortest * ordinary:
        length = min((shortest * ordinary) ** 2 / length, ordinary)
    return gradient / length


def sds_twin(
    visual: torch.Tensor,
    refined: torch.Tensor,
    weights: torch.Tensor,
    embeddings: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Eq. 7 with both distributions in full."""
    p, q = ((tokens @ embeddings.T / temperature).softmax(-1) for tokens in (refined, visual))
    return (weights * (p * (p.log() - q.log())).sum(-1)).sum()

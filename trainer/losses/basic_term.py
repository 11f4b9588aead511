"""BASIC's terms of the loss as the model holds them, with the source of their targets and the vocabulary.

Shapes: B samples of L tokens, I images of m visual tokens, d the LLM's width, V its vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trainer.losses import equations
from trainer.losses.compilation import uncompiled
from trainer.losses.embeddings import llm_embeddings, ordinary_length
from trainer.losses.supervision import Supervision, degrees, image_weights


class BasicTerm:
    """Computes L_das (Eq. 6) and L_sds (Eq. 7) of a batch's visual tokens.

    It holds no parameters. Both losses have a gradient w.r.t. the given visual tokens only.

    Args:
        terms: which of "das" and "sds" are computed.
        vocabulary: how many of the LLM's token ids are real ones; `<image>` and padding rows come after them.
        supervision: makes the targets from the running LLM; None if they are read from a cache.
        equal: every token of an image counts the same.
        prompt_only: take attention degrees only from text that is not trained.
        scale: what the LLM multiplies its inputs by, see `input_scale`.
        temperature, matmul_dtype: see `losses.sds`.
    """

    def __init__(
        self,
        terms: Sequence[str],
        vocabulary: int,
        *,
        supervision: Supervision | None = None,
        equal: bool = False,
        prompt_only: bool = False,
        scale: float = 1.0,
        temperature: float = 1.0,
        matmul_dtype: torch.dtype | None = None,
    ) -> None:
        self.terms = tuple(terms)
        self.supervision = supervision
        self.scale = scale
        self._vocabulary = vocabulary
        self._equal = equal
        self._prompt_only = prompt_only
        self._sds: dict[str, Any] = {"temperature": temperature, "scale": scale, "matmul_dtype": matmul_dtype}

    @contextmanager
    def watching(self, batch: dict[str, Any], columns: torch.Tensor, embed: nn.Module) -> Iterator[Any]:
        """Make targets from what the LLM does inside this block.

        It yields the `LayerRecorder` of supervision, or None if the targets come with the batch.

        Args:
            batch: with `attention_mask` (B, L) and `predict`.
            columns: bool (B, L), the visual tokens.
            embed: the LLM's input embedding module.
        """
        supervision = self.supervision
        if supervision is None:
            yield None
            return
        valid = batch["attention_mask"].bool()
        rows = valid & ~columns
        if self._prompt_only:
            # `predict` holds the positions before the trained tokens.
            trained = torch.zeros_like(rows).flatten()
            trained[batch["predict"] + 1] = True
            rows = rows & ~trained.view_as(rows)
        # `normalise: unit` brings V^ back to the mean length of E.
        length = self.scale * self.embeddings(embed).float().norm(dim=-1).mean() if supervision.needs_length else None
        with supervision.watching(columns, rows, valid, length=length) as recorder:
            yield recorder

    @uncompiled
    def __call__(
        self,
        visual: torch.Tensor,
        refined: torch.Tensor,
        attention: torch.Tensor,
        images: torch.Tensor,
        embed: nn.Module,
    ) -> dict[str, torch.Tensor]:
        """Compute the terms by name.

        Each is a sum over an image's tokens, then a mean over a sample's images, then over samples. For each term the
        result also has V on its way into it as `visual_NAME`, (I * m, d), whose gradient is that of the term alone.

        Args:
            visual: V, (I, m, d), with a graph to the projector alone.
            refined: V^, (I, m, d) or (I * m, d).
            attention: (I, m) or (I * m,), not negative; normalised over each image here (Eq. 5).
            images: int64 (B,), the number of images of each sample.
            embed: the LLM's input embedding module.
        """
        samples = torch.arange(len(images), device=images.device).repeat_interleave(images)
        shares = image_weights(samples).to(visual.device)
        # a_i * (share of the image): the sums of Eq. 6 and 7 over all tokens are then means over images and samples.
        weights = (self.degrees(attention.view(visual.shape[:2])) * shares.unsqueeze(-1)).flatten()
        targets = refined.reshape(-1, visual.shape[-1])
        found = {f"visual_{name}": visual.flatten(0, 1) for name in self.terms}
        if "das" in self.terms:
            # Not the mean length of V^, which layers have made longer than embeddings
            ordinary = ordinary_length(embed, self._vocabulary)
            found["das"] = equations.das(found["visual_das"], targets, weights, ordinary=ordinary)
        if "sds" in self.terms:
            found["sds"] = equations.sds(found["visual_sds"], targets, weights, self.embeddings(embed), **self._sds)
        return found

    def degrees(self, attention: torch.Tensor) -> torch.Tensor:
        """Compute a of Eq. 5 from attention, (I, m), that is not normalised.

        Each image's degrees sum to 1.
        """
        return degrees(torch.zeros_like(attention) if self._equal else attention)

    def embeddings(self, embed: nn.Module) -> torch.Tensor:
        """Return E, (V, d), see `llm_embeddings`."""
        return llm_embeddings(embed, self._vocabulary)

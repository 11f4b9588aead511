"""The terms of an attached model once more: in float64, through a copy of the model that nobody watches."""

import math
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from tests.trainer.attach.families import Tiny
from trainer.attach.attached import Attached
from trainer.attach.families import parts_of


class Twin(NamedTuple):
    """What a float64 copy of a model makes of a batch."""

    model: Any
    visual: torch.Tensor
    """(T, d): what enters the LLM at the images' places, with its graph."""
    hidden: tuple[torch.Tensor, ...]
    """(B, L, d): of the embeddings and of every layer but the last, which is normed."""
    attentions: tuple[torch.Tensor, ...]
    """(B, H, L, L) of every layer."""
    columns: torch.Tensor
    valid: torch.Tensor
    """bool (B, L): no padding."""

    def gradient(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of every parameter that has one."""
        named = dict(self.model.named_parameters())
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
        return {name: one for name, one in zip(named, found, strict=True) if one is not None and one.any()}


def twin_of(made: Tiny, batch: dict[str, Any]) -> Twin:
    """Runs the family's own code from the pixels on."""
    model = deepcopy(made.model).double().train()
    model.set_attn_implementation("eager")
    parts, given = parts_of(model), dict[str, Any]()
    parts.llm.register_forward_pre_hook(lambda _, __, named: given.update(named), with_kwargs=True)
    wide = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    out = model(**wide, output_hidden_states=True, output_attentions=True)
    columns = batch["input_ids"] == model.config.image_token_id
    return Twin(
        model,
        given["inputs_embeds"][columns],
        out.hidden_states,
        out.attentions,
        columns,
        batch["attention_mask"].bool(),
    )


def sea_twin(attached: Attached, visual: torch.Tensor, patches: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Eq. 9 by its letter."""
    embed, tokens = attached.watch.embed, attached.words.tokens  # type: ignore[union-attr]
    t = torch.stack([
        torch.stack([embed(torch.tensor([id_])).double()[0] for id_ in tokens[0, word].tolist() if id_ >= 0]).mean(0)
        for word in words.tolist()
    ]).detach()  # fmt: skip
    phi = F.normalize(visual[patches], dim=-1) @ F.normalize(t, dim=-1).T
    logits = phi * math.exp(float(attached.words.log_scale.detach()))  # type: ignore[union-attr]
    rows, columns = logits.log_softmax(-1), logits.log_softmax(0)
    return -(rows.diagonal() + columns.diagonal()).sum() / (2 * len(words))


def basic_twin(twin: Twin, images: list[list[torch.Tensor]], embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
    """Eq. 4 to 7 by their letter, k half of the layers.

    Args:
        twin: of the batch.
        images: for each sample with images, each one's visual tokens that count, as places among all.
        embeddings: E.
    """
    k = max((len(twin.hidden) - 1) // 2, 1)
    weights = [i**2 / sum(j**2 for j in range(1, k + 1)) for i in range(1, k + 1)]
    refined = sum(w * twin.hidden[i + 1][twin.columns] for i, w in enumerate(weights)).detach()  # type: ignore[union-attr]
    found = {"das": twin.visual.new_zeros(()), "sds": twin.visual.new_zeros(())}
    every = twin.columns.flatten().nonzero().squeeze(1)
    length = twin.columns.shape[1]
    for sample in images:
        for image in sample:
            row, places = int(every[image[0]]) // length, every[image] % length
            first = int(twin.columns[row].nonzero()[0])
            text = [at for at in range(first, length) if twin.valid[row, at] and not twin.columns[row, at]]
            received = sum(
                layer[row, :, text][:, :, places].mean(0).sum(0).detach().double() for layer in twin.attentions[:k]
            )
            a = received / received.sum() / len(sample) / len(images)  # type: ignore[union-attr]
            v, v_hat = twin.visual[image], refined[image]
            chord = (F.normalize(v, dim=-1) - F.normalize(v_hat, dim=-1)).square().sum(-1)
            p, q = (v_hat @ embeddings.T).log_softmax(-1), (v @ embeddings.T).log_softmax(-1)
            found["das"] = found["das"] + (a * chord).sum()
            found["sds"] = found["sds"] + (a * (p.exp() * (p - q)).sum(-1)).sum()
    return found

"""Tiny LLMs, a batch for them, and BASIC's Eq. 4 and 5 of it, symbol by symbol in float64."""

from typing import Any

import torch

from tests.support import attention_models
from tests.support.random_values import random
from trainer.losses.supervision import Supervision
from trainer.recipes.recipe import Basic

LENGTH, LAYERS, WIDTH, PATCHES = 17, 5, 32, 3
IMAGES = [(0, (2, 3, 4)), (0, (8, 9, 10)), (2, (1, 2, 3)), (3, (5, 6, 7))]
"""(sample, its columns): two images in one sample, one with no text behind it; sample 1 has none."""


def llm(family: str = "llama", attention: str = "sdpa", layers: int = LAYERS) -> Any:
    return attention_models.llm(family, attention, num_hidden_layers=layers, head_dim=8)


def batch(device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Columns, rows, valid and input embeddings; every sample but one is padded on the right."""
    columns, valid = (torch.zeros(4, LENGTH, dtype=torch.bool) for _ in range(2))
    for sample, patches in IMAGES:
        columns[sample, list(patches)] = True
    for sample, length in enumerate((14, 9, LENGTH, 8)):
        valid[sample, :length] = True
    embeds = 0.5 * random(4, LENGTH, WIDTH)
    return columns.to(device), (valid & ~columns).to(device), valid.to(device), embeds.to(device)


def watch(model: Any, basic: Basic, **settings: Any) -> Any:
    """What is seen of the batch in the model's precision."""
    columns, rows, valid, embeds = batch(model.device)
    with Supervision(model, basic).watching(columns, rows, valid, **settings) as seen:
        model(inputs_embeds=embeds.to(model.dtype), attention_mask=valid.long(), use_cache=False)
    return seen


def plain(model: Any, **settings: Any) -> Any:
    _, _, valid, embeds = batch(model.device)
    with torch.no_grad():
        return model(inputs_embeds=embeds.to(model.dtype), attention_mask=valid.long(), use_cache=False, **settings)


def states(model: Any) -> list[torch.Tensor]:
    """The residual stream behind each layer, (B, L, d), the last one before the final norm."""
    caught: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _i, output: caught.append(output)) for layer in model.layers]
    listed = plain(model, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    assert len(listed) == len(model.layers) + 1
    for ours, theirs in zip(caught[:-1], listed[1:-1], strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(model.norm(caught[-1]), listed[-1])
    return caught


def eq4(layers: list[torch.Tensor], k: int, kind: str = "inc", *, unit: float | None = None) -> torch.Tensor:
    """V^, with w_i of the paper's ablation: i^2, 1 or (k + 1 - i)^2 over its sum."""
    rows = []
    for sample, patches in sorted(IMAGES):
        for patch in patches:
            total = torch.zeros(WIDTH, dtype=torch.float64)
            for i in range(1, k + 1):
                raw = {"inc": i**2, "const": 1, "dec": (k + 1 - i) ** 2}[kind]
                below = {"inc": k * (k + 1) * (2 * k + 1) / 6, "const": k, "dec": k * (k + 1) * (2 * k + 1) / 6}[kind]
                refined = layers[i - 1][sample, patch].double()
                total = total + raw / below * (refined if unit is None else refined / refined.norm())
            rows.append(total if unit is None else unit * total)
    return torch.stack(rows)


def eq5(attentions: Any, k: int) -> torch.Tensor:
    """a_i of each image, (I, m); images without attention equal."""
    _, rows, _, _ = batch()
    found = torch.zeros(len(IMAGES), PATCHES, dtype=torch.float64)
    for image, (sample, patches) in enumerate(IMAGES):
        texts = rows[sample].nonzero().flatten().tolist()
        for place, i in enumerate(patches):
            for h in range(k):
                for j in texts:
                    found[image, place] += attentions[h][sample, :, j, i].double().mean() / (k * len(texts))
        total = found[image].sum()
        found[image] = found[image] / total if total > 0 else 1 / PATCHES
    return found

"""Tiny LLMs, a batch for them, and their attention summed in plain loops: for the tests of the tap."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from tests.support.random_values import random
from trainer.losses.attention_tap import AttentionTap

LENGTH, LAYERS, VOCABULARY = 23, 3, 50


def config(family: str = "llama", **settings: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.4,  # attention that is far from uniform
        "pad_token_id": 0,
        "sliding_window": None,
    }
    sizes |= {"head_dim": 8} if family == "gemma" else {}
    return AutoConfig.for_model(family, **(sizes | settings))


def llm(family: str = "llama", attention: str = "sdpa", seed: int = 0, **settings: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config(family, **settings), attn_implementation=attention).eval()


def batch(device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two images; none; one; one with no text behind it. Columns, rows, valid and input embeddings."""
    columns, valid = (torch.zeros(4, LENGTH, dtype=torch.bool) for _ in range(2))
    for sample, patches in ((0, (2, 3, 4, 10, 11, 12)), (2, range(1, 7)), (3, (5, 6, 7))):
        columns[sample, list(patches)] = True
    for sample, length in enumerate((20, 9, LENGTH, 8)):
        valid[sample, :length] = True
    given = (columns, valid & ~columns, valid, 0.5 * random(4, LENGTH, 32).float())
    columns, rows, valid, embeds = (one.to(device) for one in given)
    return columns, rows, valid, embeds


def run(model: Any, embeds: torch.Tensor, valid: torch.Tensor | None, **settings: Any) -> Any:
    mask = valid.long() if valid is not None and valid.dtype == torch.bool else valid
    return model(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **settings)


def tapped_run(model: Any, layers: int, *, padded: bool = True, flipped: bool = False) -> torch.Tensor:
    """`flipped`: the other way round, so that padding is in front."""
    columns, rows, valid, embeds = (one.flip(1) if flipped else one for one in batch(model.device))
    with AttentionTap(model, layers).open(columns, rows, valid) as found, torch.no_grad():
        run(model, embeds.to(model.dtype), valid if padded else None)
    return found.attention


def twin(attentions: Any, columns: torch.Tensor, rows: torch.Tensor, layers: int) -> torch.Tensor:
    """The inner sums of Eq. 5, from each layer's (B, H, L, L)."""
    found = torch.zeros(columns.shape, dtype=torch.float64)
    for h in range(layers):
        for sample, i in columns.nonzero().tolist():
            for j in rows[sample].nonzero().flatten().tolist():
                of_heads = [attentions[h][sample, head, j, i].item() for head in range(attentions[h].shape[1])]
                found[sample, i] += sum(of_heads) / len(of_heads)
    return found


def expected(
    layers: int, family: str = "llama", *, padded: bool = True, double: bool = False, **settings: Any
) -> torch.Tensor:
    """`double`: of a float64 model, whose norms and softmax transformers computes in float32; not with windows, where
    rows of padding become no numbers."""
    columns, rows, valid, embeds = batch()
    with torch.no_grad():
        model = llm(family, "eager", **settings).to(torch.float64 if double else torch.float32)
        given = run(model, embeds.to(model.dtype), valid if padded else None, output_attentions=True)
    return twin(given.attentions, columns, rows, layers)


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    """To a share of the largest value, as what float32 rounds grows with the sums."""
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(found.double(), wanted, atol=tolerance * float(wanted.detach().abs().max()), rtol=0)

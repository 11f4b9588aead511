"""Multiply the linear layers of an encoder's towers on a CPU by oneDNN, with weights laid out for it once.

torch lays bfloat16 weights out anew in each call, and multiplies float32 by MKL, which on processors of other makers
than Intel reaches about half of the possible speed. Only layers that their owners do nothing with but call are
replaced.
"""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sea_pipeline.core.devices import has_onednn, onednn_is_faster

_ROWS = 577
"""The number of tokens that the layout is chosen for; other numbers of tokens give the same results."""
_LAYERS = {
    "open_clip.transformer.ResidualAttentionBlock": ("mlp.c_fc", "mlp.c_proj"),
    "timm.layers.attention.Attention": ("qkv", "proj"),
    "timm.layers.mlp.Mlp": ("fc1", "fc2"),
    "transformers.models.bert.modeling_bert.BertSelfAttention": ("query", "key", "value"),
    "transformers.models.bert.modeling_bert.BertSelfOutput": ("dense",),
    "transformers.models.bert.modeling_bert.BertIntermediate": ("dense",),
    "transformers.models.bert.modeling_bert.BertOutput": ("dense",),
}
"""The layers to replace, by the class of their owner."""


class PackedLinear(nn.Module):
    """Computes what an `nn.Linear` does. It cannot be trained."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(tokens, self._packed, self.bias, "none", [], "")
        return found

    @cached_property
    def weight(self) -> torch.Tensor:
        """Return a dense copy of the weight, (out_features, in_features), for code that asks for it."""
        dense: torch.Tensor = self._packed.to_dense()
        return dense


class PackedAttention(nn.Module):
    """Computes what an `nn.MultiheadAttention` of open_clip's towers does, by one fused attention."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.in_proj_bias = attention.in_proj_bias.detach()
        self.qkv = PackedLinear(attention.in_proj_weight.detach(), self.in_proj_bias)
        self.out_proj = PackedLinear(attention.out_proj.weight.detach(), attention.out_proj.bias.detach())

    @property
    def in_proj_weight(self) -> torch.Tensor:
        """Return the weight of queries, keys and values, (3 C, C)."""
        return self.qkv.weight

    def forward(
        self, tokens: torch.Tensor, *_: torch.Tensor, need_weights: bool, attn_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, None]:
        """Attend over tokens, (B, N, C) to the same.

        `attn_mask`, (N, N) or (B * heads, N, N), is added to the scores.
        """
        assert not need_weights
        count, length, width = tokens.shape
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.reshape(count, self.num_heads, length, length)
        queries, keys, values = self.qkv(tokens).view(count, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(count, length, width)), None


def pack(tower: nn.Module, precision: torch.dtype) -> None:
    """Replace the linear layers of a tower's blocks if that is faster here.

    A rule and no measurement decides, so that runs stay alike. Layers that are packed already stay.
    """
    if not _is_faster(precision):
        return
    for owner in list(tower.modules()):
        kind = type(owner)
        for name in _LAYERS.get(f"{kind.__module__}.{kind.__qualname__}", ()):
            holder, _, last = name.rpartition(".")
            parent = owner.get_submodule(holder)
            if type(layer := getattr(parent, last)) is nn.Linear:
                bias = None if layer.bias is None else layer.bias.detach()
                setattr(parent, last, PackedLinear(layer.weight.detach(), bias))
        attention: Any = getattr(owner, "attn", None)
        # In bfloat16 torch's own attention rounds differently, and others get its numbers from the same weights.
        if kind.__name__ == "ResidualAttentionBlock" and precision == torch.float32 and _is_plain(attention):
            owner.attn = PackedAttention(attention)


def _is_plain(attention: Any) -> bool:  # noqa: ANN401 - any module
    return (
        type(attention) is nn.MultiheadAttention
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and attention.batch_first
        and not attention.add_zero_attn
    )


def _is_faster(precision: torch.dtype) -> bool:
    if not (has_onednn() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
        return False
    if precision == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return precision == torch.float32 and onednn_is_faster()

"""Compute the patch vectors that are compared with words, along the paths through an image tower of open_clip.

B images, N tokens, P of them patches, C the tower's width, D that of the space shared with words, L blocks.

    final    the last block's token → norm → projection, as SEA Eq. 4 has it for CLIP
    value    MaskCLIP (Zhou et al. 2022, arXiv 2112.01071)
    vv       CLIP Surgery (Li et al. 2023, arXiv 2304.05653, SEA's [30])
    pool     for towers that end in attention pooling (SigLIP): each patch alone through the pool

`value` does to a ViT's last block what MaskCLIP does to a ResNet's attention pool: values, then the output projection,
then the usual norm and projection, without residual and MLP. MaskCLIP's own code for ViTs keeps both. Later dense uses
of it (FeatUp among them) drop them, because the residual stream is what carries the wrong patches.

`vv` is CLIP Surgery's architecture surgery. From block L - 6 on, a second path starts at that block's input and adds
the block's attention with softmax(v vᵀ · scale) instead of softmax(q kᵀ · scale), and no MLP. v comes from the original
path, which is unchanged. CLIP Surgery's feature surgery, which subtracts what all labels have in common, is not done.

`pool` is MaskCLIP's trick at the pool: the softmax over one key is 1, so a patch alone is value → output projection →
MLP with its residual. Because the pool is the tower's last attention, such towers have no `value` and `vv` of blocks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import require

_VV_BLOCKS = 6


class _Branch(NamedTuple):
    """The parts of a block's attention branch that `value` and `vv` need."""

    norm: Callable[[torch.Tensor], torch.Tensor]
    weight: torch.Tensor
    """The value projection's weight, (C, C)."""
    bias: torch.Tensor | None
    """The value projection's bias, (C,), or None."""
    heads: int
    project: Callable[[torch.Tensor], torch.Tensor]

    def value(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project each token's own value, (B, N, C)."""
        return self.project(F.linear(self.norm(tokens), self.weight, self.bias))

    def attended(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute softmax(v vᵀ · scale) v and project it, (B, N, C)."""
        values = F.linear(self.norm(tokens), self.weight, self.bias)
        values = values.view(*values.shape[:2], self.heads, -1).transpose(1, 2)
        # v takes the place of q and k. torch's default scale, 1 / sqrt(C / heads), is the block's own.
        mixed = F.scaled_dot_product_attention(values, values, values)
        return self.project(mixed.transpose(1, 2).flatten(2))


class Tower(ABC):
    """An image tower of pre-norm blocks, with patch tokens, and what its paths have in common.

    It may be on the meta device, if only its shapes are needed.
    """

    grid: tuple[int, int]
    patch: tuple[int, int]
    """(height, width) of a patch in pixels."""
    paths: list[str]
    """The names of its paths; the first is the default."""
    _blocks: Any
    _prefix = 1
    """The number of tokens before the patches."""

    def patches(self, path: str, images: torch.Tensor) -> torch.Tensor:
        """Compute the vectors of a path, (B, P, D), of any length.

        `images` are normalised, (B, 3, S, S), in the tower's precision.
        """
        tokens: torch.Tensor = getattr(self, f"_{path}")(images)
        return tokens

    def _final(self, images: torch.Tensor) -> torch.Tensor:
        """Take the last block's output."""
        tokens = self._embedded(images)
        for block in self._blocks:
            tokens = block(tokens)
        return self._projected(tokens)

    def _value(self, images: torch.Tensor) -> torch.Tensor:
        """Take the last block's projected values, without its residual and MLP."""
        tokens = self._embedded(images)
        for block in self._blocks[:-1]:
            tokens = block(tokens)
        return self._projected(self._branch(self._blocks[-1]).value(tokens))

    def _vv(self, images: torch.Tensor) -> torch.Tensor:
        """Add the v-v attention of the last blocks to a second path, and let the original path give the values."""
        tokens = self._embedded(images)
        first = max(0, len(self._blocks) - _VV_BLOCKS)
        for block in self._blocks[:first]:
            tokens = block(tokens)
        path = tokens
        for number, block in enumerate(self._blocks[first:], first):
            path = path + self._branch(block).attended(tokens)  # v comes from the original path
            if number < len(self._blocks) - 1:
                tokens = block(tokens)
        return self._projected(path)

    @abstractmethod
    def _embedded(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the first block's input, (B, N, C)."""

    @abstractmethod
    def _projected(self, tokens: torch.Tensor) -> torch.Tensor:
        """Apply the norm and the projection to the patches among (B, N, C) tokens, (B, P, D)."""

    @abstractmethod
    def _branch(self, block: Any) -> _Branch:  # noqa: ANN401 - an untyped package's block
        """Return the parts of a block's attention branch."""


class _OpenClipTower(Tower):
    """open_clip's own VisionTransformer: OpenAI's CLIP, LAION's, CLIPA and others."""

    def __init__(self, visual: Any) -> None:  # noqa: ANN401 - an untyped package's model
        self._visual = visual
        self._blocks = visual.transformer.resblocks
        self.grid, self.patch = tuple(visual.grid_size), tuple(visual.patch_size)
        plain = type(self._blocks[0]).__name__ == "ResidualAttentionBlock"  # others scale or normalise the attention
        self.paths = ["final", "value", "vv"] if plain else ["final"]

    def _embedded(self, images: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self._visual._embeds(images)
        return tokens

    def _projected(self, tokens: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self._visual.ln_post(tokens[:, self._prefix :])
        return normed if self._visual.proj is None else normed @ self._visual.proj

    def _branch(self, block: Any) -> _Branch:  # noqa: ANN401 - an untyped package's block
        attention, width = block.attn, block.attn.embed_dim
        return _Branch(
            block.ln_1,
            attention.in_proj_weight[-width:],
            attention.in_proj_bias[-width:],
            attention.num_heads,
            lambda mixed: block.ls_1(attention.out_proj(mixed)),
        )


class _TimmTower(Tower):
    """timm's VisionTransformer (SigLIP, ViTamin, MobileCLIP-B) and Eva (EVA, Perception Encoder)."""

    def __init__(self, visual: Any) -> None:  # noqa: ANN401 - an untyped package's model
        layers = require("timm.layers", "clip")
        self._visual, self._trunk = visual, visual.trunk
        self._blocks = self._trunk.blocks
        self._prefix = self._trunk.num_prefix_tokens
        embed = self._trunk.patch_embed
        self.grid, self.patch = tuple(embed.grid_size), tuple(embed.feat_ratio(as_scalar=False))
        block, pool = self._blocks[0], self._trunk.attn_pool
        plain = (
            type(block).__name__ == "Block"
            and type(block.attn) is layers.Attention
            and getattr(block.attn, "gate", None) is None
        )
        if pool is not None:
            alone = type(pool) is layers.AttentionPoolLatent and pool.pos_embed is None
            self.paths = ["pool", "final"] if alone else ["final"]
        else:
            self.paths = ["final", "value", "vv"] if plain else ["final"]

    def _final(self, images: torch.Tensor) -> torch.Tensor:
        return self._headed(self._trunk.forward_features(images)[:, self._prefix :])

    def _pool(self, images: torch.Tensor) -> torch.Tensor:
        """Pool each patch alone."""
        pool = self._trunk.attn_pool
        tokens = self._trunk.forward_features(images)[:, self._prefix :]
        width = tokens.shape[-1]
        values = F.linear(tokens, pool.kv.weight[width:], None if pool.kv.bias is None else pool.kv.bias[width:])
        # With one key the softmax is 1, so the attention is the value itself.
        pooled = pool.proj(values)
        if pool.mlp is not None:
            pooled = pooled + pool.mlp(pool.norm(pooled))
        return self._headed(pooled)

    def _embedded(self, images: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self._trunk.norm_pre(self._trunk._pos_embed(self._trunk.patch_embed(images)))
        return tokens

    def _projected(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._headed(self._trunk.norm(tokens[:, self._prefix :]))

    def _headed(self, normed: torch.Tensor) -> torch.Tensor:
        """Apply to each token what follows the pooling."""
        vectors: torch.Tensor = self._visual.head(self._trunk.head(self._trunk.fc_norm(normed)))
        return vectors

    def _branch(self, block: Any) -> _Branch:  # noqa: ANN401 - an untyped package's block
        attention, width = block.attn, block.attn.proj.in_features
        return _Branch(
            block.norm1,
            attention.qkv.weight[-width:],
            None if attention.qkv.bias is None else attention.qkv.bias[-width:],
            attention.num_heads,
            lambda mixed: block.ls1(attention.proj(attention.norm(mixed))),
        )


def tower_of(visual: Any, option: str) -> Tower:  # noqa: ANN401 - an untyped package's model
    """Return the paths through an open_clip model's `visual`.

    Raises:
        UserError: it gives no vector for each patch.
    """
    kind = type(visual).__name__
    if kind == "VisionTransformer" and visual.attn_pool is None:
        return _OpenClipTower(visual)
    if kind == "TimmModel":
        kind = f"timm's {type(visual.trunk).__name__}"
        known = type(visual.trunk).__name__ in ("VisionTransformer", "Eva")
        if known and visual.trunk.global_pool in ("token", "avg", "map") and not hasattr(visual.head, "pool"):
            _check_size(visual, option)
            return _TimmTower(visual)
    if getattr(visual, "attn_pool", None) is not None:
        kind = "attentional pooling, as CoCa has it"
    raise UserError(
        f"{option}: expected an image tower with a vector for each patch: a ViT of open_clip's own, or timm's "
        f"VisionTransformer or Eva; found {kind}; ViT-L-14-336/openai is SEA's"
    )


def _check_size(visual: Any, option: str) -> None:  # noqa: ANN401 - an untyped package's model
    taken, given = tuple(visual.trunk.patch_embed.img_size), tuple(visual.image_size)
    if taken != given:
        raise UserError(
            f"{option}: expected image_size {taken[0]} in its config, which its trunk takes; found {given[0]}; "
            "save it as a folder with that size"
        )

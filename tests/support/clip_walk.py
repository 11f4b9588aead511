"""A walk through an image tower's weights, token by token and head by head, in float64; and pixels to walk with."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Names(NamedTuple):
    block: str
    norms: tuple[str, str]
    qkv: tuple[str, str]
    out: str
    mlp: tuple[str, str]
    scales: tuple[str, str]
    epsilon: float


OWN = Names(
    "transformer.resblocks.{}.", ("ln_1", "ln_2"), ("attn.in_proj_weight", "attn.in_proj_bias"), "attn.out_proj",
    ("mlp.c_fc", "mlp.c_proj"), ("ls_1.gamma", "ls_2.gamma"), 1e-5,
)  # fmt: skip
TIMM = Names(
    "trunk.blocks.{}.", ("norm1", "norm2"), ("attn.qkv.weight", "attn.qkv.bias"), "attn.proj",
    ("mlp.fc1", "mlp.fc2"), ("ls1.gamma", "ls2.gamma"), 1e-6,
)  # fmt: skip


class Walk:
    """One image's way through a tower: (N, C) tokens in float64, the class or register token first."""

    def __init__(self, visual: Any, heads: int, quick: bool) -> None:
        self.weights = {name: value.double() for name, value in visual.state_dict().items()}
        self.names = TIMM if hasattr(visual, "trunk") else OWN
        self.heads, self.quick = heads, quick
        self.layers = 1 + max(int(name.split(".")[2]) for name in self.weights if self.block(0)[:-2] in name)

    def block(self, number: int) -> str:
        return self.names.block.format(number)

    def linear(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        return tokens @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", torch.zeros(()).double())

    def norm(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        if f"{name}.weight" not in self.weights:
            return tokens
        centred = tokens - tokens.mean(-1, keepdim=True)
        unit = centred / (centred.square().mean(-1, keepdim=True) + self.names.epsilon).sqrt()
        return unit * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def embedded(self, image: torch.Tensor) -> torch.Tensor:
        own = self.names is OWN
        kernel = self.weights["conv1.weight" if own else "trunk.patch_embed.proj.weight"]
        size = kernel.shape[-1]
        rows = [
            (kernel * image[:, top : top + size, left : left + size]).sum((1, 2, 3))
            for top in range(0, image.shape[1], size)
            for left in range(0, image.shape[2], size)
        ]
        patches = torch.stack(rows) + (0 if own else self.weights["trunk.patch_embed.proj.bias"])
        place = self.weights["positional_embedding" if own else "trunk.pos_embed"].squeeze(0)
        (first,) = {"class_embedding", "trunk.cls_token", "trunk.reg_token"} & self.weights.keys()
        return self.norm("ln_pre", torch.cat([self.weights[first].view(1, -1), patches]) + place)

    def attention(self, number: int, tokens: torch.Tensor, weights: Callable[..., torch.Tensor]) -> torch.Tensor:
        """The attention branch of a block; `weights` makes logits of one head's q, k and v."""
        block = self.block(number)
        normed = self.norm(block + self.names.norms[0], tokens)
        joined = normed @ self.weights[block + self.names.qkv[0]].T + self.weights[block + self.names.qkv[1]]
        outcome = []
        for q, k, v in zip(*(part.chunk(self.heads, -1) for part in joined.chunk(3, -1)), strict=True):
            outcome.append((weights(q, k, v) / math.sqrt(q.shape[-1])).softmax(-1) @ v)
        mixed = self.linear(block + self.names.out, torch.cat(outcome, -1))
        return mixed * self.weights.get(block + self.names.scales[0], torch.ones(()).double())

    def after(self, number: int, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attention(number, tokens, lambda q, k, v: q @ k.T)
        block, (first, second) = self.block(number), self.names.mlp
        inner = self.linear(block + first, self.norm(block + self.names.norms[1], tokens))
        bent = inner * (1.702 * inner).sigmoid() if self.quick else inner * 0.5 * (1 + (inner / math.sqrt(2)).erf())
        scale = self.weights.get(block + self.names.scales[1], torch.ones(()).double())
        return tokens + self.linear(block + second, bent) * scale

    def projected(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.names is OWN:
            return self.norm("ln_post", tokens) @ self.weights["proj"]
        vectors = self.norm("trunk.fc_norm", self.norm("trunk.norm", tokens))
        for name in ("trunk.head", "head.proj"):
            vectors = self.linear(name, vectors) if f"{name}.weight" in self.weights else vectors
        return vectors

    def path(self, name: str, image: torch.Tensor) -> torch.Tensor:
        """All tokens' vectors, (N, D)."""
        inputs = [self.embedded(image)]
        for number in range(self.layers):
            inputs.append(self.after(number, inputs[-1]))
        if name == "final":
            return self.projected(inputs[-1])
        if name == "value":  # -inf but on the diagonal: a token attends to itself alone
            alone = torch.full((len(inputs[0]),) * 2, -math.inf).double().fill_diagonal_(0)
            return self.projected(self.attention(self.layers - 1, inputs[-2], lambda q, k, v: alone))
        begun = max(0, self.layers - 6)
        second = inputs[begun]
        for number in range(begun, self.layers):
            second = second + self.attention(number, inputs[number], lambda q, k, v: v @ v.T)
        return self.projected(second)


def pixels_of(encoder: Any, count: int = 2) -> torch.Tensor:
    size = encoder.preprocess.size
    return torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels.double() / 255 - 0.5).permute(0, 3, 1, 2) / 0.5


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def pooled_alone(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Each patch through a timm trunk's attention pool as a sequence of one token, in float64: (B, P, D), unit."""
    trunk = model.double().visual.trunk
    with torch.no_grad():
        tokens = trunk.forward_features(normalised(pixels))[:, trunk.num_prefix_tokens :]
        return unit(torch.stack([trunk.attn_pool(tokens[:, [place]]) for place in range(tokens.shape[1])], 1))

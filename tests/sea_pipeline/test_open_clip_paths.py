"""The paths through an image tower against a walk through its weights, token by token and head by head, in float64."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from sea_pipeline.encoders import load_encoder, paths_of
from tests.tiny_clip import CLIP, SIGLIP, changed, random_model, save_model

CONFIGS = {
    "clip": CLIP,
    "quick gelu": changed(CLIP, quick_gelu=True),
    "deep": changed(CLIP, {"layers": 8}),
    "averaged": changed(CLIP, {"final_ln_after_pool": True, "pool_type": "avg"}),
    "layer scale, no first norm": changed(CLIP, {"ls_init_value": 0.3, "no_ln_pre": True}),
    "timm, class token": changed(CLIP, {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160}),
    "timm, averaged, a register, layer scale, no linear": changed(
        CLIP, {"timm_model_name": "test_vit2", "timm_pool": "avg", "timm_proj": None, "image_size": 160}
    ),
}


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


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_path_is_the_walk(config: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(config)
    folder = save_model(tmp_path / "model", model, config)
    specs = paths_of(f"open_clip:{folder}", "cpu")
    assert [spec.rpartition("#")[2] for spec in specs] == ["final", "value", "vv"]
    walk = Walk(model.visual, heads=2, quick=config.get("quick_gelu", False))
    found = {}
    for spec in specs:
        encoder = load_encoder(spec, "cpu")
        pixels = pixels_of(encoder)
        name = spec.rpartition("#")[2]
        found[name] = encoder.patches(pixels)
        slow = torch.stack([unit(walk.path(name, image))[1:] for image in normalised(pixels)])
        assert found[name].dtype == torch.float32
        assert found[name].shape == (2, encoder.grid[0] * encoder.grid[1], encoder.width)
        torch.testing.assert_close(found[name].double(), slow, atol=1e-5, rtol=0)
        assert encoder.sign == {"final": -1, "value": 1, "vv": 1}[name]
    assert (found["vv"] - found["value"]).abs().max() > 0.1
    assert (found["vv"] - found["final"]).abs().max() > 0.1
    torch.testing.assert_close(encoder.patches(pixels.float()), found["vv"])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_walk_ends_where_the_model_does(config: dict[str, Any]) -> None:
    """The pooled token's `final` is encode_image; for averaged models that of the patches' mean."""
    model = random_model(config).double()
    walk = Walk(model.visual, heads=2, quick=config.get("quick_gelu", False))
    size = model.visual.image_size
    image = torch.randn(3, *size, generator=torch.Generator().manual_seed(1)).double()
    tokens = walk.embedded(image)
    for number in range(walk.layers):
        tokens = walk.after(number, tokens)
    averaged = "avg" in (config["vision_cfg"].get("pool_type"), config["vision_cfg"].get("timm_pool"))
    pooled = tokens[1:].mean(0, keepdim=True) if averaged else tokens[:1]
    with torch.no_grad():
        torch.testing.assert_close(walk.projected(pooled), model.encode_image(image[None]), atol=1e-9, rtol=1e-7)


def test_the_attention_pool_of_each_patch_alone(tmp_path: Path) -> None:
    """`pool` is the pool of a sequence of one token; of all tokens it is encode_image."""
    model = random_model(SIGLIP)
    folder = save_model(tmp_path / "model", model, SIGLIP)
    pool, final = (load_encoder(spec, "cpu") for spec in paths_of(f"open_clip:{folder}", "cpu"))
    assert (pool.sign, final.sign) == (1, -1)
    assert load_encoder(f"open_clip:{folder}", "cpu").fields() == pool.fields()
    pixels = pixels_of(pool)
    trunk = model.double().visual.trunk
    with torch.no_grad():
        tokens = trunk.forward_features(normalised(pixels))
        torch.testing.assert_close(trunk.attn_pool(tokens[:, 1:]), model.encode_image(normalised(pixels)))
        alone = torch.stack([trunk.attn_pool(tokens[:, place : place + 1]) for place in range(1, 101)], 1)
    torch.testing.assert_close(pool.patches(pixels).double(), unit(alone), atol=1e-5, rtol=0)
    torch.testing.assert_close(final.patches(pixels).double(), unit(tokens[:, 1:]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("trunk", ["eva02_tiny_patch14_224", "vit_pe_core_tiny_patch16_384"])
def test_eva_trunks(trunk: str, tmp_path: Path) -> None:
    """Each token through what follows pooling; the class token's is encode_image."""
    pooled = "token" if trunk.startswith("eva02") else "map"
    vision = {"timm_model_name": trunk, "timm_pool": pooled, "timm_proj": None, "image_size": int(trunk[-3:])}
    config = changed(CLIP, vision)
    model = random_model(config)
    with torch.no_grad():
        for parameter in model.visual.parameters():  # twelve layers of 0.2 on top would leave no signal
            parameter.mul_(0.3)
    folder = save_model(tmp_path / "model", model, config)
    specs = paths_of(f"open_clip:{folder}", "cpu")
    assert [spec.rpartition("#")[2] for spec in specs] == (["final"] if pooled == "token" else ["pool", "final"])
    encoder = load_encoder(specs[0], "cpu")
    pixels = pixels_of(encoder, 1)
    inner = model.double().visual.trunk
    with torch.no_grad():
        tokens = inner.forward_features(normalised(pixels))
        each = [tokens[:, place : place + 1] for place in range(tokens.shape[1])]
        if pooled == "map":
            each = [inner.attn_pool(token)[:, None] for token in each]
        slow = torch.cat([inner.head(inner.fc_norm(token)) for token in each], 1)
        if pooled == "token":
            torch.testing.assert_close(slow[:, 0], model.encode_image(normalised(pixels)))
    torch.testing.assert_close(encoder.patches(pixels).double(), unit(slow)[:, 1:], atol=1e-5, rtol=0)

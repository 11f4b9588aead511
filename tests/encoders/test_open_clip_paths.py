"""The paths through an image tower against a walk through its weights, token by token and head by head, in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sea_pipeline.encoders import load_encoder, paths_of
from tests.support.clip_walk import Walk, normalised, pixels_of, pooled_alone, unit
from tests.support.tiny_clip import CLIP, SIGLIP, changed, random_model, save_model

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
    torch.testing.assert_close(pool.patches(pixels).double(), pooled_alone(model, pixels), atol=1e-5, rtol=0)
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

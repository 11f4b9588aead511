"""open_clip's towers against slow twins: paths through an image tower, words, pixels; what precision does to both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sea_pipeline.encoders import EncoderOptions, Preprocess, load_encoder, paths_of
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


TEXTS = ["red", "a rather long text of a good many words", "", "ox", "antidisestablishmentarianism", "don't", "magenta"]


def quiet(_: int) -> None:
    pass


def text_changed(*, custom: bool = False, **changes: Any) -> dict[str, Any]:
    return changed(CLIP, custom_text=custom, text_cfg=CLIP["text_cfg"] | changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "cuts", "template"),
    [
        pytest.param(CLIP, True, "bare", id="clip"),
        pytest.param(CLIP, True, "photo", id="photo"),
        pytest.param(CLIP, True, "ensemble", id="ensemble"),
        pytest.param(changed(CLIP, quick_gelu=True), True, "bare", id="quick"),
        pytest.param(changed(CLIP, custom_text=True), True, "photo", id="custom"),
        pytest.param(text_changed(custom=True, pool_type="eos", eos_id=49407), True, "bare", id="eos"),
        pytest.param(text_changed(no_causal_mask=True), False, "photo", id="no mask"),
        pytest.param(text_changed(pool_type="last"), False, "bare", id="last"),
        pytest.param(SIGLIP, False, "ensemble", id="siglip"),
    ],
)
def test_words_are_encode_text_in_full_length(
    config: dict[str, Any], cuts: bool, template: Any, tmp_path: Path
) -> None:
    from open_clip import get_tokenizer
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    model = random_model(config)
    folder = save_model(tmp_path / "model", model, config)
    encoder = load_encoder(f"open_clip:{folder}", "cpu", EncoderOptions(template=template))
    lengths = []
    transformer = encoder._towers[1]._tower.transformer
    transformer.register_forward_pre_hook(lambda module, given: lengths.append(given[0].shape[1]))
    done: list[int] = []
    found = encoder.words(TEXTS, done.append)
    assert found.dtype == torch.float32
    assert sum(done) == len(TEXTS)
    forms = {"bare": [str], "photo": ["a photo of a {}.".format], "ensemble": OPENAI_IMAGENET_TEMPLATES}[template]
    tokenizer = get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        for word, vector in zip(TEXTS, found, strict=True):
            each = model.double().encode_text(tokenizer([form(word) for form in forms]), normalize=True)
            mean = each.mean(0)
            torch.testing.assert_close(vector.double(), mean / mean.norm(), atol=1e-5, rtol=0)
    full = config["text_cfg"]["context_length"]
    assert (max(lengths) < full) == cuts


def test_many_words_keep_their_order(tmp_path: Path) -> None:
    """More than a chunk and several batches, of all lengths: each as it is alone."""
    folder = save_model(tmp_path / "model", random_model(CLIP), CLIP)
    encoder = load_encoder(f"open_clip:{folder}", "cpu")
    words = [" ".join(["word"] * (1 + number % 7) + [str(number)]) for number in range(700)]
    found = encoder.words(words, quiet)
    for number in range(0, 700, 97):
        torch.testing.assert_close(found[number], encoder.words([words[number]], quiet)[0], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.995), ("float16", 0.9999)])
@pytest.mark.parametrize("config", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_half_precision_is_close_and_words_stay_exact(
    precision: Any, least: float, config: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "model", random_model(config), config)
    for spec in paths_of(f"open_clip:{folder}", "cpu"):
        exact, half = load_encoder(spec, "cpu"), load_encoder(spec, "cpu", EncoderOptions(precision=precision))
        size = exact.preprocess.size
        pixels = torch.randint(256, (2, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        slow, fast = exact.patches(pixels), half.patches(pixels)
        assert fast.dtype == torch.float32
        torch.testing.assert_close(fast.norm(dim=-1), torch.ones(fast.shape[:2]), atol=1e-5, rtol=0)
        assert not torch.equal(slow, fast)
        assert (slow * fast).sum(-1).min() > least
        assert torch.equal(exact.words(TEXTS, quiet), half.words(TEXTS, quiet))


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(90, 50), (37, 150), (64, 64), (301, 30)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_open_clips_own(mode: Any, size: tuple[int, int], interpolation: Any) -> None:
    """To the bit where open_clip resizes once; its centre crop is of whole pixels after resizing, so within a step."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    smooth = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC)
    config = PreprocessCfg(
        64, mean=(0,) * 3, std=(1,) * 3, interpolation=interpolation, resize_mode=mode, fill_color=77
    )
    theirs = (image_transform_v2(config, is_train=False)(image) * 255).round().byte().permute(1, 2, 0).numpy()
    ours = Preprocess(64, mode, interpolation, 77)(image).values
    assert ours.shape == (64, 64, 3)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= (0 if mode != "shortest" or size[0] == size[1] else 16)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(96, 50), (37, 150), (64, 64), (1000, 40)])
def test_the_crop_box_says_where_a_pixel_comes_from(mode: Any, size: tuple[int, int]) -> None:
    """In an image whose red says how far right and whose green how far down a pixel is, ours and open_clip's."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    width, height = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = ((np.arange(width) + 0.5) / width * 200 + 25).round()
    ramp[..., 1] = ((np.arange(height) + 0.5) / height * 200 + 25).round()[:, None]
    image = Image.fromarray(ramp)
    pixels = Preprocess(40, mode)(image)
    config = PreprocessCfg(40, mean=(0,) * 3, std=(1,) * 3, resize_mode=mode)
    theirs = image_transform_v2(config, is_train=False)(image).permute(1, 2, 0).numpy() * 255
    x0, y0, x1, y1 = pixels.crop_box
    across = x0 + (x1 - x0) * (np.arange(40) + 0.5) / 40
    down = y0 + (y1 - y0) * (np.arange(40) + 0.5) / 40
    for values in (pixels.values.astype(float), theirs):
        for axis, places, length in ((0, across, width), (1, down, height)):
            seen = np.take(values[..., axis], 20, axis=axis)
            within = (places > 0.05) & (places < 0.95)
            step = 200 / min(length, 40) + 3
            assert within.any()
            assert np.abs(seen - (places * 200 + 25))[within].max() < step
    if mode == "longest" and width != height:
        assert min(x0, y0) < 0
        assert max(x1, y1) > 1
        assert (pixels.values[0, 0] == 0).all()
    if mode == "squash":
        assert pixels.crop_box == (0, 0, 1, 1)


@pytest.mark.parametrize("side", [32, 38])
def test_the_crop_box_ends_where_the_last_patch_does(side: int, tmp_path: Path) -> None:
    """By the gradient of the last patch's first vector in the pixels; 38 pixels hold 4 patches of 8."""
    config = changed(CLIP, {"image_size": side})
    encoder = load_encoder(f"open_clip:{save_model(tmp_path / 'model', random_model(config), config)}", "cpu")
    pixels = torch.zeros(1, 3, side, side, requires_grad=True)
    tower: Any = encoder._towers[0]
    last = tower._embedded(pixels)[0, -1]
    seen = torch.autograd.grad(last @ torch.randn(len(last)), pixels)[0].abs().sum((0, 1)).nonzero()
    assert (seen.min(0).values.tolist(), seen.max(0).values.tolist()) == ([24, 24], [31, 31])
    for mode in ("squash", "shortest", "longest"):
        shown = replace(encoder.preprocess, mode=mode)  # type: ignore[arg-type]
        assert shown(Image.new("RGB", (50, 50))).crop_box == pytest.approx((0, 0, 32 / side, 32 / side), abs=1e-12)
    fields = encoder.fields()["preprocess"]
    assert ("reach" in fields) is (side == 38), "folders of other encoders stay as they are"
    scaled = load_encoder(f"s2@1,2:{encoder.spec}", "cpu")
    assert scaled.fields()["preprocess"].get("reach", [1, 1]) == list(scaled.preprocess.reach)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "share"),
    [
        ("ViT-SO400M-14-SigLIP-384/webli", 378 / 384),
        ("ViT-SO400M-16-SigLIP2-384/webli", 1),
        ("ViT-L-14-336/openai", 1),
        ("MobileCLIP-B/datacompdr", 1),
        ("ViTamin-S/datacomp1b", 1),
    ],
)
def test_what_published_models_cover(model: str, share: float) -> None:
    """The last two have convolutions before their patches."""
    assert load_encoder(f"open_clip:{model}", "cpu").preprocess.reach == (share, share)


@pytest.mark.parametrize(("mode", "height"), [("shortest", 1), ("squash", 1), ("longest", 40)])
def test_a_line_of_pixels(mode: Any, height: float) -> None:
    """Of which open_clip's own padding would leave nothing; one row of pixels stays, 40 times as high as the photo."""
    pixels = Preprocess(40, mode)(Image.new("RGB", (1600, 1), (9, 9, 9)))
    assert (pixels.values.max((1, 2)) == 9).sum() == (1 if mode == "longest" else 40)
    assert pixels.crop_box[3] - pixels.crop_box[1] == height

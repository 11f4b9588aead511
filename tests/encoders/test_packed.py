"""Towers with packed layers against the same towers in float64, and when layers are packed."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from sea_pipeline.core import devices
from sea_pipeline.encoders import load_encoder, packed
from sea_pipeline.encoders.packed import PackedAttention, PackedLinear, pack
from sea_pipeline.encoders.patch_paths import tower_of
from tests.support.tiny_clip import CLIP, SIGLIP, changed, random_model, save_model

CASES = [
    pytest.param(config, path, id=f"{name}-{path}")
    for name, config, paths in (
        ("clip", CLIP, ("final", "value", "vv")),
        ("quick", changed(CLIP, quick_gelu=True), ("final",)),
        ("scaled", changed(CLIP, {"ls_init_value": 0.3}), ("final", "value", "vv")),
        ("siglip", SIGLIP, ("pool", "final")),
        ("timm", changed(SIGLIP, {"timm_pool": "token", "timm_proj": "linear"}), ("final", "value", "vv")),
    )
    for path in paths
]


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    if not devices.has_onednn():
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(packed, "_is_faster", lambda precision: True)


def packed_visual(config: dict[str, Any]) -> Any:
    visual = deepcopy(random_model(config).visual)
    pack(visual, torch.float32)
    return visual


@pytest.mark.slow
@pytest.mark.parametrize(("config", "path"), CASES)
@torch.inference_mode()
def test_the_paths_are_those_of_the_tower_in_float64(config: dict[str, Any], path: str) -> None:
    visual = packed_visual(config)
    side = config["vision_cfg"]["image_size"]
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    expected = tower_of(random_model(config).double().visual, "").patches(path, images.double())
    found = tower_of(visual, "").patches(path, images)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)
    one = tower_of(visual, "").patches(path, images[1:2])
    torch.testing.assert_close(one, found[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [CLIP, SIGLIP])
def test_all_layers_of_the_blocks_are_packed(config: dict[str, Any]) -> None:
    visual = packed_visual(config)
    blocks = visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks
    kinds = [type(module) for block in blocks for module in block.modules()]
    assert kinds.count(PackedLinear) == 4 * len(blocks)
    assert nn.Linear not in kinds
    assert nn.MultiheadAttention not in kinds
    assert kinds.count(PackedAttention) == (len(blocks) if config is CLIP else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        CLIP,
        changed(CLIP, custom_text=True),
        changed(CLIP, text_cfg=CLIP["text_cfg"] | {"no_causal_mask": True}),
        changed(CLIP, custom_text=True, text_cfg=CLIP["text_cfg"] | {"embed_cls": True}),
        changed(CLIP, custom_text=True, text_cfg=CLIP["text_cfg"] | {"embed_cls": True, "heads": 1}),
        SIGLIP,
    ],
    ids=["clip", "custom", "no mask", "a mask for each text", "a mask for each text, one head", "siglip"],
)
def test_words_are_those_of_the_tower_in_float64(config: dict[str, Any], tmp_path: Path) -> None:
    model, words = random_model(config), ["red", "a rather long text of a good many words", "ox", "magenta"]
    encoder = load_encoder(f"open_clip:{save_model(tmp_path / 'model', model, config)}", "cpu")
    found, again = encoder.words(words, _quiet), encoder.words(words, _quiet)
    kinds = [type(module) for module in encoder._towers[1]._model.modules()]
    assert kinds.count(PackedLinear) == 4 * config["text_cfg"]["layers"]
    assert torch.equal(found, again)
    with torch.no_grad():
        tokens = encoder._source.tokenizer()(words)
        expected = model.double().encode_text(tokens, normalize=True)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def _quiet(_: int) -> None: ...


@torch.inference_mode()
def test_bert_is_packed_and_gives_the_same() -> None:
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    model = BertModel(config).eval()
    ids = torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(0))
    expected = deepcopy(model).double()(ids).last_hidden_state
    pack(model, torch.float32)
    assert [type(module) for module in model.encoder.modules()].count(PackedLinear) == 2 * 6
    torch.testing.assert_close(model(ids).last_hidden_state.double(), expected, atol=1e-5, rtol=0)


def test_attention_that_is_not_plain_is_left_alone() -> None:
    attention = nn.MultiheadAttention(16, 2, batch_first=True, add_bias_kv=True)
    assert not packed._is_plain(attention)
    assert not packed._is_plain(nn.MultiheadAttention(16, 2, bias=False, batch_first=True))
    assert packed._is_plain(nn.MultiheadAttention(16, 2, batch_first=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "taken", "given"), [(1, 3, 5), (50, 64, 33), (7, 130, 64)])
@torch.inference_mode()
def test_a_layer_in_both_precisions_and_its_weight_again(rows: int, taken: int, given: int, bias: bool) -> None:
    layer = nn.Linear(taken, given, bias=bias)
    tokens = torch.randn(2, rows, taken)
    for precision, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        if precision == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            continue  # a processor without AVX-512, where such layers are never packed
        plain = deepcopy(layer).to(precision)
        ours = PackedLinear(plain.weight, plain.bias)
        expected = deepcopy(plain).double()(tokens.to(precision).double())
        torch.testing.assert_close(ours(tokens.to(precision)).double(), expected, atol=tolerance, rtol=tolerance)
        assert torch.equal(ours.weight, plain.weight)


@pytest.mark.parametrize(
    ("precision", "processor", "faster"),
    [
        (torch.float32, "GenuineIntel Intel(R) Xeon(R)", False),
        (torch.float32, "AuthenticAMD AMD EPYC", True),
        (torch.float16, "AuthenticAMD AMD EPYC", False),
    ],
)
def test_the_rule(precision: torch.dtype, processor: str, faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(devices, "processor", lambda: processor)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(packed, "onednn_is_faster", devices.onednn_is_faster.__wrapped__)
    assert packed._is_faster(precision) == faster

"""Models that cannot label, and damaged ones."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import Preprocess, load_encoder
from tests.support.tiny_clip import CLIP, add_architecture, changed, random_model, save_model


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("ViT-L-14-33/openai", "an architecture of open_clip, a folder or hf-hub:ORG/NAME; found 'ViT-L-14-33'; near"),
        ("ViT-L-14-33/openai", "ViT-L-14-336"),
        ("/nowhere/model", "an architecture of open_clip, a folder or hf-hub:ORG/NAME; found '/nowhere/model'"),
        ("ViT-L-14-336", "ViT-L-14-336/ and then a tag of open_clip or a file of weights; found nothing; near it: op"),
        ("ViT-L-14/opena", "found opena; near it: openai"),
        ("ViT-B-32/openai#vv2", "found openai#vv2; near it: openai"),
        ("ViT-B-32/openai#pool", "expected one of its paths, final, value, vv; found pool"),
        ("ViT-B-16-SigLIP/webli#vv", "expected one of its paths, pool, final; found vv"),
        ("RN50/openai", "a ViT of open_clip's own, or timm's VisionTransformer or Eva; found ModifiedResNet"),
        ("convnext_base/laion400m_s13b_b51k", "found timm's ConvNeXt"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", "found CoCa, whose vectors of patches are its pooler's"),
        ("ViTamin-XL-384/datacomp1b", "expected image_size 384 in its config, which its trunk takes; found 256"),
        ("vit_relpos_medium_patch16_cls_224/none", "expected vit_relpos_medium_patch16_cls_224/ and then a tag"),
    ],
)  # fmt: skip
def test_models_that_cannot_label_are_refused(spec: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        load_encoder(f"open_clip:{spec}", "cpu")
    assert str(error.value).startswith(f"--encoder open_clip:{spec}: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("vision", "told"),
    [
        ({"attentional_pool": True}, "found attentional pooling, as CoCa has it"),
        ({"image_size": [32, 48]}, "expected a model for square images; found image_size [32, 48]"),
        ({"timm_model_name": "vit_relpos_small_patch16_224"}, "found timm's VisionTransformerRelPos"),
        ({"timm_model_name": "no_such_vit"}, "its vision_cfg cannot be built"),
        ({"patches": 3}, "its vision_cfg cannot be built: TypeError"),
    ],
    ids=str,
)
def test_configs_that_cannot_label_are_refused(vision: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", random_model(CLIP), changed(CLIP, vision))
    with pytest.raises(UserError) as error:
        load_encoder(f"open_clip:{folder}", "cpu")
    assert told in str(error.value)


def test_damaged_folders_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_architecture(monkeypatch)
    folder = save_model(tmp_path / "m", random_model(CLIP), CLIP)
    other = tmp_path / "other.pt"
    torch.save(random_model(changed(CLIP, {"layers": 3})).state_dict(), other)
    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps(Preprocess(3)))
    pixels = torch.zeros(1, 32, 32, 3)
    for file, told in ((other, "cannot be loaded: Error(s) in loading state_dict"), (evil, "cannot be loaded: ")):
        with pytest.raises(UserError, match=r"^--encoder open_clip:tiny/") as error:
            load_encoder(f"open_clip:tiny/{file}", "cpu").patches(pixels)
        assert f"{file} {told}" in str(error.value)
        assert "\n" not in str(error.value)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(f"open_clip:{folder}", "cpu").patches(pixels)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"expected a \.safetensors, \.bin or \.pth file in .*; found none"):
        load_encoder(f"open_clip:{folder}", "cpu")
    for text in ('{"model_cfg": {"embed_dim": 3}}', "[1]", "{", None):
        (folder / "open_clip_config.json").write_text(text) if text else (folder / "open_clip_config.json").unlink()
        with pytest.raises(
            UserError, match=r"open_clip_config\.json with model_cfg: embed_dim, vision_cfg and text_cfg"
        ):
            load_encoder(f"open_clip:{folder}", "cpu")
    with pytest.raises(UserError, match=r"open_clip_config\.json of no/such cannot be fetched: Failed to "):
        load_encoder("open_clip:hf-hub:no/such", "cpu")

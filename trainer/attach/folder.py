"""Open, load and save a folder of an existing model in its family's own form."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.json_files import read_json
from sea_pipeline.storage.leftovers import files_like
from sea_pipeline.storage.publish import publish_folder
from trainer.attach.families import FAMILIES, Parts, parts_of, vocabulary_of
from trainer.attach.rows import Chat
from trainer.model.borders import border, saving
from trainer.model.config_check import check_plain
from trainer.model.existing_folder import check_existing_folder
from trainer.model.fsdp import agreed, round_state, state_of
from trainer.model.lora import add_adapters, merge_adapters
from trainer.model.parts import quiet
from trainer.recipes.recipe import LearningRates, Lora, Recipe

_ADVICE = "restore it, or save the model and its processor again with transformers"


@dataclass(frozen=True)
class ExistingFolder:
    """A folder of an existing model without its weights."""

    path: Path
    config: Any
    processor: Any
    chat: Chat
    vocabulary: int
    """The number of the LLM's token ids that are real ones."""

    @property
    def projector(self) -> str:
        """Return a part of the names that the projector's tensors have in files."""
        return f"{FAMILIES[self.config.model_type].projector}."


def open_existing_folder(path: Path) -> ExistingFolder:
    """Read everything but the weights.

    Raises:
        UserError: it holds no model of a known family, or its files cannot be read.
    """
    check_existing_folder(path)
    check_plain(str(path), read_json(path / "config.json"))
    with quiet(), border(f"{path}: its configuration or processor cannot be loaded", _ADVICE, given=True):
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False)
        processor: Any = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_token", None) is None or not tokenizer.is_fast:
        raise UserError(
            f"{path}: expected the family's own processor with a fast tokenizer; found {type(processor).__name__}; "
            f"{_ADVICE}"
        )
    chat = Chat(processor, int(config.image_token_id), path)
    return ExistingFolder(path, config, processor, chat, vocabulary_of(tokenizer, config))


def load_existing(folder: ExistingFolder, recipe: Recipe) -> nn.Module:
    """Load the model with its parts frozen as the recipe says.

    The parts that train are float32.

    Raises:
        UserError: a weight is missing, or the files are damaged.
    """
    frozen, trains = _frozen_dtype(recipe), recipe.learning_rates
    dtypes = {
        "": torch.float32,
        "text_config": torch.float32 if trains.llm and recipe.lora is None else frozen,
        "vision_config": torch.float32 if trains.vision else frozen,
    }
    with quiet(), border(f"{folder.path}: cannot be loaded", "copy the folder again", given=True):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder.path, dtype=dtypes, output_loading_info=True, trust_remote_code=False
        )
    model: nn.Module = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):  # transformers would draw them at random
        raise UserError(
            f"{folder.path}: {len(missing)} weights are missing, the first is {missing[0]}; copy the folder again"
        )
    parts = parts_of(model)
    if recipe.lora is not None:
        add_adapters(parts.llm, recipe.lora, recipe.seed)
    freeze(model, parts, trains, adapted=recipe.lora is not None)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen)
    return model


def freeze(model: nn.Module, parts: Parts, rates: LearningRates, *, adapted: bool = False) -> None:
    """Set which parameters train, which are those of the parts with a learning rate.

    In an adapted LLM only the adapters train, at the LLM's rate.
    """
    on = {"projector": rates.projector, "vision": rates.vision, "lora": rates.llm}
    on |= {"llm": None if adapted else rates.llm}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(on[parts.part(name)] is not None)


def _frozen_dtype(recipe: Recipe) -> torch.dtype:
    half = recipe.frozen_dtype == "bfloat16" or (
        recipe.frozen_dtype == "auto" and recipe.training_arguments.get("bf16") and torch.cuda.is_available()
    )
    return torch.bfloat16 if half else torch.float32


def save_existing(
    model: nn.Module, start: ExistingFolder, out: Path, *, lora: Lora | None = None, write: bool = True
) -> None:
    """Write the folder `out`, a copy of the starting folder with the weights as they are now.

    It holds nothing of ours. Weights have the precision that the starting folder's config names. Adapters of LoRA are
    merged. If the run has several processes, each of them calls this, and only the first has `write`.

    Raises:
        UserError: the folder cannot be written; every process raises it.
    """
    with agreed(), saving(out):
        if write:
            dtype = start.config.dtype or torch.float32
            state = {name: value.detach().cpu() for name, value in state_of(model).items()}
            if lora is not None:
                merge_adapters(state, {}, lora, dtype)
            round_state(state, dtype)
            _write(cast("Any", model), start.path, out, state)


def _write(model: Any, start: Path, out: Path, state: Mapping[str, torch.Tensor]) -> None:  # noqa: ANN401
    shutil.rmtree(out, ignore_errors=True)  # left by an earlier, unfinished call
    with quiet(), publish_folder(out) as scratch:
        model.save_pretrained(scratch, state_dict=dict(state))
        for file in files_like(start, "*"):
            holds_weights = file.name.startswith(("model", "pytorch_model", "consolidated"))
            if file.is_file() and not holds_weights:
                shutil.copy2(file, scratch / file.name)
        for file in scratch.glob("*.safetensors"):  # they are written readable by their owner only
            shutil.copymode(scratch / "config.json", file)

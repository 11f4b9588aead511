"""Open, load and save a folder of an existing model in its family's own form."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.inputs.crops import FULL, Reach
from sea_pipeline.labels.run import LabelSettings
from sea_pipeline.labels.store import LabelStore
from sea_pipeline.storage.json_files import read_json
from sea_pipeline.storage.publish import publish_folder, remove_folder
from trainer.attach.families import FAMILIES, parts_of
from trainer.attach.rows import Chat, read_texts
from trainer.attach.weights import model_names, write_trained
from trainer.data.inputs import open_label_source
from trainer.data.run_rows import Conversations, open_rows
from trainer.model.borders import saving
from trainer.model.config_check import check_plain
from trainer.model.existing_folder import check_existing_folder
from trainer.model.fsdp import agreed
from trainer.model.load import frozen_dtype, vocabulary_of
from trainer.model.lora import add_adapters, plain
from trainer.model.other_files import copy_others
from trainer.model.parts import quiet
from trainer.model.pretrained import load_weights, named
from trainer.model.tokenise import without_limits
from trainer.recipes.recipe import Data, Lora, Recipe
from trainer.towers import sides, tower_reach

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

    @property
    def reach(self) -> Reach:
        """Return how far the tower's patches reach in an image of its own size; towers of any size fill it."""
        tower = self.config.vision_config
        size = getattr(tower, "image_size", None)
        return FULL if size is None else tower_reach(tower, sides(size))


def open_existing_folder(path: Path) -> ExistingFolder:
    """Read everything but the weights.

    Raises:
        UserError: it holds no model of a known family, or its files cannot be read.
    """
    check_existing_folder(path)
    check_plain(str(path), read_json(path / "config.json"))
    with quiet(), named(str(path), "its configuration or processor cannot be loaded", _ADVICE):
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False)
        processor: Any = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_token", None) is None or not tokenizer.is_fast:
        raise UserError(
            f"{path}: expected the family's own processor with a fast tokenizer; found {type(processor).__name__}; "
            f"{_ADVICE}"
        )
    without_limits(tokenizer)
    chat = Chat(processor, config, path)
    if tokenizer.pad_token_id in chat.beyond:
        raise UserError(f"{path}: {chat.beyond[tokenizer.pad_token_id]}")
    return ExistingFolder(path, config, processor, chat, vocabulary_of(tokenizer, config))


def open_existing_rows(
    folder: ExistingFolder, data: Data, reporter: Reporter = SILENT, *, first: bool = True
) -> Conversations:
    """Read a recipe's data for an existing model, see `open_rows` and `read_texts`."""
    read = partial(read_texts, chat=folder.chat, reporter=reporter)
    return open_rows(data, read, reporter if first else SILENT)


def open_existing_labels(
    recipe: Recipe,
    folder: ExistingFolder,
    conversations: Conversations,
    make: Callable[[LabelSettings], StageRun] | None,
    begun_with: str | None,
    reporter: Reporter = SILENT,
) -> LabelStore | None:
    """Open the labels of a run, which are always carried to the family's grids, see `open_label_source`."""
    carried = recipe.model_copy(update={"labels": recipe.labels.model_copy(update={"transfer": True})})
    return open_label_source(
        carried, cast("Any", folder), conversations, make=make, begun_with=begun_with, reporter=reporter
    )


def load_existing(folder: ExistingFolder, recipe: Recipe) -> nn.Module:
    """Load the model with its parts frozen as the recipe says.

    All is read as float32, and then what is frozen is rounded if the recipe says so. What trains keeps the precision of
    its file wherever it lies: Qwen's projector is a module of its tower.

    Raises:
        UserError: a weight is missing, has another shape or has no place in the model, or the files are damaged.
    """
    frozen, on = frozen_dtype(recipe), recipe.learning_rates.by_part(adapted=recipe.lora is not None)
    with quiet():
        model: nn.Module = load_weights(AutoModelForImageTextToText, str(folder.path), folder.config, torch.float32)
    parts = parts_of(model)
    if recipe.lora is not None:
        add_adapters(parts.llm, recipe.lora, recipe.seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(on[parts.part(name)] is not None)
    if frozen != torch.float32:
        stored = set(model_names(model, folder.path).values())
        for name, parameter in model.named_parameters():
            base = plain(name) != name and plain(name) not in stored  # adapters are merged into this very copy of it
            if not parameter.requires_grad and not base:
                parameter.data = parameter.data.to(frozen)
    return model


def save_existing(
    model: nn.Module, start: ExistingFolder, out: Path, *, lora: Lora | None = None, write: bool = True
) -> None:
    """Write the folder `out`, the starting folder's weights with the trained ones written over them.

    The files that belong to them are copied. It holds nothing of ours. All tensors keep the names, files and precision
    that they have in the starting folder, and those that did not train keep their bytes, because the model's copies may
    have been rounded to compute. Adapters of LoRA are merged into the starting folder's weights, too. If the run has
    several processes, each of them calls this, and only the first has `write`.

    Besides the model the memory holds one tensor at a time, and those that a file stores in another form, such as the
    experts of a mixture that it has one by one.

    Raises:
        UserError: the folder cannot be written; every process raises it.
    """
    with agreed(), saving(out):
        if write:
            remove_folder(out)  # left by an earlier, unfinished call
            with quiet(), publish_folder(out) as scratch:
                copy_others(start.path, scratch)
                write_trained(model, start.path, scratch, lora)

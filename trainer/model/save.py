"""Writes the trained model as a stock LLaVA folder, whole or not at all."""

import shutil
from pathlib import Path

import torch
from torch import nn

from sea_pipeline.storage.publish import publish_folder, remove_folder
from trainer.model.aligned_llava import AlignedLlava, part
from trainer.model.aspect_ratio import write_image_processor
from trainer.model.borders import saving
from trainer.model.fsdp import agreed, round_state, state_of, whole_state
from trainer.model.load import ModelFolder, load_in_own_dtype
from trainer.model.lora import merge_adapters, plain
from trainer.model.other_files import copy_others
from trainer.model.parts import quiet
from trainer.model.prompts import TemplateName
from trainer.model.tensor_files import PROJECTOR, canonical, copy_weights, read_weights
from trainer.model.trained_template import needs_template, write_template
from trainer.recipes.recipe import Recipe


def save_model(model: AlignedLlava, start: ModelFolder, out: Path, recipe: Recipe, *, write: bool = True) -> None:
    """Write the folder `out`, a copy of the starting folder with the weights as they are now.

    Its image processor is the one that the run saw images through, and its chat template writes prompts as the recipe's
    template wrote rows.

    Weights keep the precision that the starting folder says, which every reader expects of it. Those that did not train
    keep its values, whatever precision they were computed with. Adapters of LoRA are merged. If the run has several
    processes, each of them calls this, and only the first has `write`.

    Raises:
        UserError: the folder cannot be written; every process raises it.
    """
    files = {entry.name: entry.read for entry in read_weights(start.path)} if model.with_lm else {}
    own = state_of(model)
    frozen = _frozen(own) if model.with_lm else {}
    state = whole_state(model, [name for name in own if name not in frozen]) if model.with_lm else {}
    with agreed(), saving(out):
        if write:
            dtype = start.config.dtype or torch.float32
            if absent := [name for name in frozen.values() if canonical(name) not in files]:
                whole = state_of(load_in_own_dtype(start))
                files |= {canonical(name): whole[name].detach for name in absent}
            if recipe.lora is not None:
                merge_adapters(state, files, recipe.lora, dtype)
            # What did not train comes from the files, because the model's copy may have been rounded to compute.
            state |= {name: files[canonical(name)]() for name in frozen.values() if name not in state}
            round_state(state, dtype)
            _write(model, start, out, state, recipe.data.template)


def _frozen(own: dict[str, torch.Tensor]) -> dict[str, str]:
    """Name the folder's tensors that did not train, and what each is called without adapters.

    Buffers such as a router's bias stay, too, but a part that trains may change its own.
    """
    ours = {name: value for name, value in own.items() if part(name) != "alignment"}
    trains = {part(name) for name, value in ours.items() if value.requires_grad}
    return {
        name: plain(name)
        for name, value in ours.items()
        if not value.requires_grad and (isinstance(value, nn.Parameter) or part(name) not in trains)
    }


def _write(
    model: AlignedLlava, start: ModelFolder, out: Path, weights: dict[str, torch.Tensor], template: TemplateName
) -> None:
    remove_folder(out)  # left by an earlier, unfinished call
    with quiet(), publish_folder(out) as scratch:
        copy_others(start.path, scratch, without=("config.json",))
        if start.other_pixels:
            write_image_processor(start.processor.image_processor, scratch)
        if needs_template(start.processor.tokenizer, template):
            write_template(start.processor, scratch)
        if model.with_lm:
            model.save_pretrained(scratch, state_dict=weights)
            shutil.copy2(start.path / "config.json", scratch / "config.json")  # training has changed its use_cache
            for file in scratch.glob("*.safetensors"):  # they are written readable by their owner only
                shutil.copymode(scratch / "config.json", file)
        else:
            _with_projector(model, start.path, scratch)


def _with_projector(model: AlignedLlava, start: Path, folder: Path) -> None:
    """Copy the starting folder's own files with the trained projector in them.

    The LLM's layers were never loaded.
    """
    trained = model.projector.state_dict()
    shutil.copy2(start / "config.json", folder / "config.json")
    names = copy_weights(start, folder, lambda name: trained[_own(name)] if PROJECTOR in name else None)
    written = {_own(name) for name in names}
    assert written == trained.keys(), f"{start}: no weight file holds the projector's {trained.keys() - written}"


def _own(name: str) -> str:
    """Return a tensor's name within the projector."""
    return name.partition(PROJECTOR)[2]

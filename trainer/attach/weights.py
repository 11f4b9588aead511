"""Finds an existing model's weights in the files of its folder, and writes those that trained over them."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key, revert_weight_conversion

from trainer.model.lora import A, B, merged_weight, plain
from trainer.model.tensor_files import copy_weights, tensors_of
from trainer.model.weight_files import weight_files
from trainer.recipes.recipe import Lora


def model_names(model: nn.Module, folder: Path) -> dict[str, str]:
    """Return the names in the model of the tensors that files hold as they are in it, by their names in files.

    A tensor that transformers makes of others when it loads, or the other way round, is not among them.

    Args:
        model: as transformers loaded it from the folder, with or without adapters.
        folder: of the model.
    """
    loaded = cast("Any", model)
    rules = loaded._weight_conversions or []  # those that were used when it was loaded
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    own = {plain(name): name for name in model.state_dict()}
    found = {}
    for file in weight_files(folder):
        with file.open("rb") as weights:
            stored = tensors_of(weights)[1]
        for name in stored:
            renamed, converted = rename_source_key(name, renamings, converters, loaded.base_model_prefix, own)
            if renamed not in own:  # a name that needs no rule, but that one matches
                renamed, converted = rename_source_key(name, [], [], loaded.base_model_prefix, own)
            if converted is None and renamed in own:
                found[name] = renamed
    return found


def write_trained(model: nn.Module, start: Path, out: Path, lora: Lora | None) -> None:
    """Write the weight files of the starting folder into another, with the trained values in them.

    Args:
        model: as transformers loaded it from the starting folder, and then trained.
        start: the starting folder.
        out: holds the other files already.
        lora: of the recipe, if the model has adapters.
    """
    names = model_names(model, start)
    trained = _trained(model, start, {name: stored for stored, name in names.items()}, lora)
    values = {stored: trained[name] for stored, name in names.items() if name in trained}
    tensors = model.state_dict(keep_vars=True)
    direct = {id(tensors[name]) for name in names.values() if name in trained and name in tensors}
    rest = {
        name: make()
        for name, make in trained.items()
        if name not in names.values() and id(tensors.get(name)) not in direct  # a tied one has another name in files
    }
    if rest:
        reverted = revert_weight_conversion(cast("Any", model), rest)
        values |= {name: value.detach for name, value in reverted.items()}
    written = copy_weights(start, out, lambda name: values[name]() if name in values else None)
    for file in weight_files(out):  # transformers writes them readable by their owner only
        shutil.copymode(out / "config.json", file)
    assert written == values.keys(), f"{start}: no weight file holds {sorted(values.keys() - written)[:3]}"


def _trained(
    model: nn.Module, start: Path, stored: dict[str, str], lora: Lora | None
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return functions that give the trained values, by the names of a model without adapters."""
    tensors = model.state_dict(keep_vars=True)
    found: dict[str, Callable[[], torch.Tensor]] = {}
    for name, value in tensors.items():
        layer, adapter, _ = name.partition(A)
        if adapter:
            assert lora is not None
            b, weight = tensors[name.replace(A, B)], f"{layer}.weight"
            own = tensors[f"{layer}.base_layer.weight"].detach
            base = partial(_read, start, stored[weight]) if weight in stored else own
            found[weight] = partial(_merged, base, value, b, lora)
        elif value.requires_grad and B not in name:
            found[name] = value.detach
    return found


def _merged(base: Callable[[], torch.Tensor], a: torch.Tensor, b: torch.Tensor, lora: Lora) -> torch.Tensor:
    return merged_weight(base().cpu(), a.detach().cpu(), b.detach().cpu(), lora, torch.float32)


def _read(folder: Path, name: str) -> torch.Tensor:
    """Read a tensor by its name in files."""
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            if name in opened.keys():  # noqa: SIM118 - it is no mapping
                value: torch.Tensor = opened.get_tensor(name)
                return value
    raise AssertionError(name)

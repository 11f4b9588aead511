"""Adds LoRA (Hu et al. 2021, arXiv 2106.09685) to the LLM by peft: W x + (alpha / rank) B A x with A and B trained."""

import torch
from torch import nn
from transformers import PreTrainedModel

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.extras import require
from trainer.model.tensor_files import Stored, canonical
from trainer.recipes.recipe import Lora

A, B = ".lora_A.", ".lora_B."
"""The infix of a parameter's name, after its layer, for the two factors of an adapter."""


def add_adapters(llm: PreTrainedModel, lora: Lora, seed: int) -> None:
    """Add adapters to linear layers, in place.

    B starts at 0, so that the LLM gives what it gave before.

    The layers stay where they are in the LLM, and every parameter of an adapter has `lora_` in its name.

    Args:
        llm: a base decoder such as `LlamaModel`. The head is not part of it, so it has no adapter.
        lora: of the recipe.
        seed: of A.

    Raises:
        UserError: peft is not installed, or the LLM has no layer of a name in `lora.targets`.
    """
    peft = require("peft", "lora")
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    linear = {name: module for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    routers = [name for name, module in linear.items() if not _is_linear(module)]
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, exclude_modules=routers
    )
    names = {name.rpartition(".")[2] for name in linear if name not in routers}
    if not isinstance(targets, str) and (unknown := sorted(set(targets) - names)):
        raise UserError(f"lora.targets: the LLM has no linear layer {unknown[0]!r}; expected some of {sorted(names)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Given the LLM itself, peft would also adapt a mixture's stacked experts, which are no linear layers.
        peft.inject_adapter_in_model(config, nn.ModuleDict({"llm": llm}))


@torch.no_grad()
def _is_linear(module: nn.Linear) -> bool:
    """Tell whether a layer gives W x, as the routers of Phi-MoE and Llama 4 do not, although they are `nn.Linear`s."""
    if type(module) is nn.Linear:
        return True
    with torch.random.fork_rng(devices=[]):
        return isinstance(module(module.weight.new_zeros(1, module.in_features)), torch.Tensor)


def merged_weight(base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, lora: Lora, dtype: torch.dtype) -> torch.Tensor:
    """Compute W + (alpha / rank) B A in float32, rounded once.

    Args:
        base: W, (out, in).
        a: (rank, in).
        b: (out, rank).
        lora: of the recipe.
        dtype: of the result.
    """
    delta = (b.float() @ a.float()) * (lora.alpha / lora.rank)
    return (delta + base.float()).to(dtype)


def plain(name: str) -> str:
    """Spell a parameter as it is named without adapters."""
    return name.replace(".base_layer.", ".")


def merge_adapters(state: dict[str, torch.Tensor], files: Stored, lora: Lora, dtype: torch.dtype) -> None:
    """Put merged weights in place of adapters, so that the names are a stock model's again.

    Args:
        state: whole adapters, and weights that are in no file; changed in place.
        files: the weights that adapters are added to, because the model's own may have been rounded to compute.
        lora: of the recipe.
        dtype: see `merged_weight`.
    """
    for first in [name for name in state if A in name]:
        layer = first.partition(A)[0]
        a, b = state.pop(first), state.pop(first.replace(A, B))
        read = files.get(canonical(f"{layer}.weight"))
        base = state.pop(f"{layer}.base_layer.weight") if read is None else read()
        state[f"{layer}.weight"] = merged_weight(base, a, b, lora, dtype)
    for name in [name for name in state if plain(name) != name]:
        state[plain(name)] = state.pop(name)

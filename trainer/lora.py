"""LoRA (Hu et al. 2021, arXiv 2106.09685) on the LLM, through peft: W x + (alpha / rank) B A x with A and B trained."""

import torch
from torch import nn
from transformers import PreTrainedModel

from sea_pipeline.errors import UserError
from sea_pipeline.optional import require
from trainer.recipe import Lora
from trainer.sharding import fill, whole
from trainer.weights import Stored, canonical

_ADAPTER = "default"


def add_adapters(llm: PreTrainedModel, lora: Lora, seed: int) -> None:
    """Puts adapters beside linear layers, in place; B starts at 0, so that the LLM gives what it gave.

    The layers stay where they are in the LLM, and every parameter of an adapter has `lora_` in its name.

    Args:
        llm: a base decoder such as `LlamaModel`; its head is not part of it, and so has no adapter.
        lora: of the recipe.
        seed: of A.

    Raises:
        UserError: peft is not installed, or the LLM has no layer of a name in `lora.targets`.
    """
    peft = require("peft", "lora")
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    names = {name.rpartition(".")[2] for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    if not isinstance(targets, str) and (unknown := sorted(set(targets) - names)):
        raise UserError(f"lora.targets: the LLM has no linear layer {unknown[0]!r}; expected some of {sorted(names)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, llm, adapter_name=_ADAPTER)


def merged_weight(base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, lora: Lora, dtype: torch.dtype) -> torch.Tensor:
    """W + (alpha / rank) B A in float32, as `merge_adapters` forms it, of tensors that are in files.

    Args:
        base: W, (out, in).
        a: (rank, in).
        b: (out, rank).
        lora: of the recipe.
        dtype: of the result.
    """
    delta = (b.float() @ a.float()) * (lora.alpha / lora.rank)
    return (delta + base.float()).to(dtype)


@torch.no_grad()
def merge_adapters(model: nn.Module, dtype: torch.dtype, files: Stored) -> set[str]:
    """Adds the adapters to the weights that they stand beside, and takes them out: the model is a stock one again.

    The sums are formed in float32, of the weights in `files` where they are there, as those of the model may have been
    rounded to compute; they are rounded once, to `dtype`. Returns the names of the weights.
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    for name, module in adapted.items():
        linear = module.get_base_layer()
        delta, read = whole(module.get_delta_weight(_ADAPTER)).float(), files.get(canonical(f"{name}.weight"))
        merged = delta + (whole(linear.weight) if read is None else read().to(delta.device)).float()
        if type(linear.weight) is nn.Parameter:
            linear.weight.data = merged.to(dtype)
        else:  # FSDP's, whose type is given
            fill(linear.weight, merged)
        model.set_submodule(name, linear)
    return {f"{name}.weight" for name in adapted}

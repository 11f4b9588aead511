"""Handles FSDP: weights that are cut over the processes, what accelerate leaves undone, and errors of any process."""

import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, broadcast_object_list, gather_object, save_fsdp_optimizer
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from sea_pipeline.core.errors import UserError

_WHOLE_OPTIMIZER = "optimizer.bin"
"""accelerate's name of an optimizer's state that is in one piece."""


def whole(value: torch.Tensor) -> torch.Tensor:
    """Gather a tensor from all processes' pieces.

    Each process must call it at the same time.
    """
    return value.full_tensor() if isinstance(value, DTensor) else value


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers, or this process's pieces of them, by name.

    Tied ones have their first name only.
    """
    once: dict[int, tuple[str, torch.Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        once.setdefault(id(value), (name, value))
    return dict(once.values())


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that train, as `state_of` does."""
    return {name: value for name, value in state_of(model).items() if value.requires_grad}


def whole_state(model: nn.Module, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Gather weights from all processes' pieces in the first process's memory.

    The other processes get nothing.

    Args:
        model: each process must ask for its weights at the same time.
        names: of parameters and buffers, as in `state_of`.
    """
    own = state_of(model)
    if not dist.is_initialized():  # what follows looks for pieces in each module, which takes longer than to copy
        return {name: own[name].detach().cpu() for name in names}
    frozen = any(isinstance(own[name], nn.Parameter) and not own[name].requires_grad for name in names)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=not frozen)
    state = get_model_state_dict(model, options=options)
    return {name: cast("torch.Tensor", state[name]) for name in names if state}


def round_state(state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Round all but integers to a dtype, in place.

    It goes tensor by tensor, because memory may not hold all of them twice.
    """
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = value.to(dtype)


def load_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Write whole tensors over the parameters of their names.

    If parameters are cut, the first process's tensors go over the pieces of all.
    """
    cut = any(isinstance(value, DTensor) for value in model.parameters())  # whole parameters are copied in each process
    options = StateDictOptions(full_state_dict=cut, broadcast_from_rank0=cut, strict=False)
    set_model_state_dict(model, cast("dict[str, Any]", state), options=options)


def path_of_holder(model: nn.Module, module: nn.Module) -> str:
    """Return the path of the FSDP module that holds a module's weights; "" for the model itself, or if none does."""
    path: str = next(name for name, one in model.named_modules() if one is module)
    while path and not isinstance(model.get_submodule(path), FSDPModule):
        path = path.rpartition(".")[0]
    return path


def keep_embeddings_whole(model: Any) -> None:  # noqa: ANN401 - transformers' or peft's
    """Have FSDP, if it cuts a model, keep the LLM's input embeddings gathered after a forward; the terms use them."""
    holder = model.get_submodule(path_of_holder(model, model.get_input_embeddings()))
    if isinstance(holder, FSDPModule):
        holder.set_reshard_after_forward(False, recurse=False)


class _WholeEmbeddings(TrainerCallback):
    """Makes FSDP gather the LLM's input embeddings once in a forward, not at each use.

    The terms use them if there are images. A process whose batch has none would miss the second gathering.
    """

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:  # noqa: ANN401 - as in TrainerCallback
        keep_embeddings_whole(model)


class ShardingTrainer(Trainer):
    """A Trainer in which FSDP works on CPUs, too, in the right precision and with small checkpoints."""

    def __init__(self, *given: Any, **named: Any) -> None:  # noqa: ANN401 - as in Trainer
        super().__init__(*given, **named)
        self.add_callback(_WholeEmbeddings())

    def create_accelerator_and_postprocess(self) -> None:
        """Create the Trainer's accelerator, with FSDP on CPUs, too.

        accelerate would silently train without FSDP there.

        With `bf16`, weights are sent and used in bfloat16, but gradients are summed and losses given in float32.
        accelerate's own choice is bfloat16 for all of these, which leaves a loss three digits.
        """
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            for state in (PartialState(), self.accelerator.state):  # accelerate copies one over the other repeatedly
                state.distributed_type = DistributedType.FSDP
            if not self.is_fsdp_enabled:
                assert self.args.fsdp_plugin_args is not None
                self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
                self.is_fsdp_enabled = True
            if self.args.bf16:
                policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
                self.accelerator.state.fsdp_plugin.mixed_precision_policy = policy
            os.environ.pop("ACCELERATE_USE_FSDP", None)  # accelerate sets it; it would hold for later stages, too
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing writes to them

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # This uses torch's get_optimizer_state_dict, whole or in pieces as fsdp_config says, as the Trainer loads it.
        # The Trainer itself would also write the whole model.
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        groups = _groups_without_state(Path(checkpoint)) if checkpoint and self.is_fsdp_enabled else None
        if checkpoint is None or groups is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        for own, kept in zip(self.optimizer.param_groups, groups, strict=True):
            own.update({name: value for name, value in kept.items() if name != "params"})
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))


def _groups_without_state(checkpoint: Path) -> list[dict[str, Any]] | None:
    """Return the parameter groups of a whole optimizer without any state, as SGD's, which torch cannot load.

    Returns None for any other. The first process looks, and all processes get its answer.
    """
    found: list[list[dict[str, Any]] | None] = [None]
    with agreed():
        if PartialState().is_main_process and (file := checkpoint / _WHOLE_OPTIMIZER).is_file():
            kept = torch.load(file, weights_only=True, mmap=True)  # without reading an Adam's gigabytes
            found = [None if any(kept["state"].values()) else kept["param_groups"]]
    broadcast_object_list(found)
    return found[0]


@contextmanager
def agreed() -> Iterator[list[str]]:
    """Wait until each process has left the block.

    If one of them could not finish it, none goes on.

    No process may leave the block before a collective operation inside it. So a problem found before one goes into the
    list that this yields.

    Raises:
        UserError: it was raised here or in another process.
    """
    problems: list[str] = []
    try:
        yield problems
    except UserError as error:
        problems.append(str(error))
    if failed := gather_object(problems):
        raise UserError(failed[0])


def is_first_process() -> bool:
    """Tell whether this is the process that speaks, once `train` has been called."""
    return bool(PartialState().is_main_process)

"""FSDP: weights that are cut over the processes, and what accelerate leaves open about them."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, save_fsdp_optimizer
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor put together of all processes' pieces; each of them must ask for it at the same time."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(
    model: nn.Module,
    *,
    keep: bool = True,
    trained: bool = False,
    dtype: torch.dtype | None = None,
    stored: Mapping[str, Callable[[], torch.Tensor]] = MappingProxyType({}),
) -> dict[str, torch.Tensor]:
    """A model's weights by name, whole and on the CPU, one after the other: all may not fit beside their pieces.

    Args:
        model: every process asks for its weights at the same time.
        keep: whether this process wants them; without, it has its part in it and gets nothing.
        trained: the parameters that train, in place of everything.
        dtype: of what is no integer; None leaves them as they are.
        stored: by name, what gives a weight in place of the model; the same names in every process.
    """
    found: dict[int, torch.Tensor] = {}  # tied weights stay one tensor
    named = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if trained and (id(value) in found or not value.requires_grad):  # by one name, as in `named_parameters`
            continue
        if id(value) not in found:
            read = stored.get(name)
            one = value if read and not keep else read() if read else whole(value.detach())
            found[id(value)] = (one.to(dtype) if dtype and one.is_floating_point() else one).cpu() if keep else value
        named[name] = found[id(value)]
    return named if keep else {}


@torch.no_grad()
def fill(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Writes a whole tensor, of as many values, over a parameter, or its piece over this process's piece."""
    value = value.view(parameter.shape)
    if isinstance(parameter, DTensor):
        moved = value.to(parameter.device)
        value = distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(value)


class ShardingTrainer(Trainer):
    """A Trainer that FSDP works in: on CPUs, too, in the right precision, and with small checkpoints."""

    def _build_accelerator_args(self, **given: Any) -> dict[str, Any]:  # noqa: ANN401 - as in Trainer
        if self.args.fsdp:
            given["fsdp_plugin"] = self._plugin()
        built: dict[str, Any] = super()._build_accelerator_args(**given)
        return built

    def _plugin(self) -> FullyShardedDataParallelPlugin:
        """With `bf16`, weights travel and compute in bfloat16; gradients are summed, and losses given, in float32.

        accelerate's own choice is bfloat16 for all of these, which leaves a loss three digits.
        """
        assert self.args.fsdp_plugin_args is not None
        plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
        if self.args.bf16:
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                torch.bfloat16, torch.float32, cast_forward_inputs=False
            )
        return plugin

    def create_accelerator_and_postprocess(self) -> None:
        """The Trainer's, with FSDP on CPUs, too, where accelerate trains without it and does not say so."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            for state in (PartialState(), self.accelerator.state):  # the one is written over the other, again and again
                state.distributed_type = DistributedType.FSDP
            if not self.is_fsdp_enabled:
                self.accelerator.state.fsdp_plugin = self._plugin()
                self.is_fsdp_enabled = True
            os.environ.pop("ACCELERATE_USE_FSDP", None)  # accelerate's; it would hold for later stages, too
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # which nobody writes over

    def _prepare_for_training(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - as in Trainer
        """Has the LLM's input embeddings made whole once in a forward, not at each use.

        The terms use them where there are images; a process whose batch has none would miss the second time.
        """
        prepared = super()._prepare_for_training(*given, **named)
        embed = self.accelerator.unwrap_model(self.model).get_input_embeddings()
        if isinstance(embed, FSDPModule):
            embed.set_reshard_after_forward(False)
        return prepared

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin  # the Trainer would write the whole model beside it
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

"""Checkpoints that hold what trains and nothing else, and which of them are whole.

A checkpoint of stage 1 is the projector, not the LLM: the frozen parts are in the folder that the run started from.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sea_pipeline.errors import UserError
from trainer.sharding import fill

_TRAINED = "trained.safetensors"
_BALANCE = "balance."
_STATE = "trainer_state.json"
"""What the Trainer writes last."""


def save_trained(state: dict[str, torch.Tensor], balances: nn.Module, folder: Path) -> None:
    """Writes every parameter that trains, by name, and what the balances have measured."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value.contiguous() for name, value in state.items()}
    kept |= {f"{_BALANCE}{name}": value for name, value in balances.state_dict().items()}
    save_file(kept, folder / _TRAINED)


def load_trained(model: nn.Module, balances: nn.Module, folder: Path) -> None:
    """Reads what `save_trained` wrote.

    Raises:
        UserError: it belongs to a run in which other parameters train.
    """
    found = load_file(folder / _TRAINED)
    own = {name: found.pop(f"{_BALANCE}{name}") for name in balances.state_dict() if f"{_BALANCE}{name}" in found}
    balances.load_state_dict(own)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if differing := sorted(parameters.keys() ^ found.keys()):
        raise UserError(f"{folder}: holds other trained parameters than this recipe's, such as {differing[0]}")
    for name, value in found.items():
        fill(parameters[name], value)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; those that a kill left half-written are removed."""
    numbered = {
        int(match[1]): path for path in folder.glob("checkpoint-*") if (match := re.fullmatch(r"\D+(\d+)", path.name))
    }
    for step in sorted(numbered, reverse=True):
        try:
            json.loads((numbered[step] / _STATE).read_text("utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(numbered[step])
        else:
            return numbered[step]
    return None


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint has behind it."""
    return int(checkpoint.name.rpartition("-")[2])


def processes_of(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint: each has left the state of its random numbers."""
    return len(list(checkpoint.glob("rng_state*.pth")))


def kept(folder: Path) -> str:
    """For a message: what is not lost."""
    checkpoint = latest(folder)
    return "there is no checkpoint yet" if checkpoint is None else f"{checkpoint} is kept"

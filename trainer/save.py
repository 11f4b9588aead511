"""The trained model as a stock LLaVA folder, whole or not at all."""

import os
import shutil
import uuid
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sea_pipeline.storage import writing
from trainer.load import ModelFolder
from trainer.model import AlignedLlava
from trainer.parts import quiet

PROJECTOR = "multi_modal_projector."


def save_model(model: AlignedLlava, start: ModelFolder, out: Path) -> None:
    """Writes the folder `out`: everything of the folder that the run started from, with the weights as they are now.

    Weights keep the precision that the starting folder says, which is what every reader expects of it.
    """
    scratch = out.parent / f".{out.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    try:
        with quiet(), writing(out):
            scratch.mkdir(parents=True)
            for file in start.path.iterdir():
                if file.is_file() and not file.name.startswith("model") and file.name != "config.json":
                    shutil.copy2(file, scratch / file.name)
            if model.with_lm:
                model.save_pretrained(scratch, state_dict=_in_precision(model, start.config.dtype or torch.float32))
                shutil.copy2(start.path / "config.json", scratch / "config.json")  # training has changed its use_cache
                for file in scratch.glob("*.safetensors"):  # they come readable by their owner only
                    shutil.copymode(scratch / "config.json", file)
            else:
                _with_projector(model, start.path, scratch)
            shutil.rmtree(out, ignore_errors=True)  # of an earlier, unfinished call
            scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _in_precision(model: AlignedLlava, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    cast: dict[int, torch.Tensor] = {}  # a head that is the embedding matrix stays one tensor with it
    return {
        name: cast.setdefault(value.data_ptr(), value.to(dtype) if value.is_floating_point() else value)
        for name, value in model.state_dict().items()
    }


def _with_projector(model: AlignedLlava, start: Path, folder: Path) -> None:
    """The starting folder's own files, with the projector in place: the LLM's layers were never loaded."""
    trained = dict(model.model.multi_modal_projector.state_dict())
    shutil.copy2(start / "config.json", folder / "config.json")
    for file in sorted(start.glob("model*")):
        if file.suffix != ".safetensors" or not _replaced(file, folder / file.name, trained):
            shutil.copy2(file, folder / file.name)


def _replaced(file: Path, target: Path, trained: dict[str, torch.Tensor]) -> bool:
    """Rewrites one weight file if it holds the projector, or a part of it."""
    with safe_open(file, framework="pt") as weights:
        names = list(weights.keys())
        if not any(PROJECTOR in name for name in names):
            return False
        tensors = {name: weights.get_tensor(name) for name in names}
        metadata = weights.metadata()
    for name, tensor in tensors.items():
        if PROJECTOR in name:
            tensors[name] = trained[name.partition(PROJECTOR)[2]].detach().cpu().to(tensor.dtype).contiguous()
    save_file(tensors, target, metadata)
    return True

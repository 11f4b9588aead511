"""Files as the Hugging Face hub holds them: indented JSON, weights in one file or in shards with an index."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Shapes = Mapping[str, tuple[int, ...]]
"""By a tensor's name in the file, its shape."""
Weights = Mapping[str, torch.Tensor]

LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{7:064d}\nsize 4976698672\n"
"""What a clone without Git LFS holds in place of a large file."""


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def random_weights(shapes: Shapes, dtype: torch.dtype, *, norm: float = 1.0) -> dict[str, torch.Tensor]:
    """Values that no forgotten term would hide behind; weights of norms lie around `norm`, everything else around 0."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator) * (0.2 if len(shape) > 1 else 0.1)
        weights[name] = (value + norm * (len(shape) == 1 and "norm" in name and "weight" in name)).to(dtype)
    return weights


def write_weights(folder: Path, weights: Weights, kind: str = "safetensors", shards: int = 1) -> None:
    """Writes `model.safetensors` or `pytorch_model.bin`, in shards with their index if there are several."""
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    names = list(weights)
    files = {f"{stem}.{kind}": names}
    if shards > 1:
        each = -(-len(names) // shards)
        files = {
            f"{stem}-{number + 1:05d}-of-{shards:05d}.{kind}": names[number * each : (number + 1) * each]
            for number in range(shards)
        }
        where = {name: file for file, held in files.items() for name in held}
        size = sum(value.nbytes for value in weights.values())
        write_json(folder / f"{stem}.{kind}.index.json", {"metadata": {"total_size": size}, "weight_map": where})
    folder.mkdir(parents=True, exist_ok=True)
    for file, held in files.items():
        if kind == "bin":
            torch.save({name: weights[name] for name in held}, folder / file)
        else:
            save_file({name: weights[name].contiguous() for name in held}, folder / file, metadata={"format": "pt"})


def write_texts(folder: Path, *names: str) -> None:
    """Files that lie in the hub's folders and are for people, or for other programs."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of {folder.name}\n", "utf-8")

"""Attached models trained by two processes, one launch for all."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from tests.trainer.attach.families import MAKERS, Tiny
from tests.trainer.attach.trained import ARGUMENTS, Collate, OwnTrainer, rows, sft_trainer
from tests.trainer.attach.worlds import Pictures
from trainer.attach import AttachMixin, attach
from trainer.model.fsdp import ShardingTrainer

BOTH: dict[str, Any] = {"sea": {"window": 1, "gather": True}, "das": {}, "sds": {"weight": 0.1}}
JOBS: dict[str, dict[str, Any]] = {
    "ddp-qwen3_vl": {},
    "ddp-llava": {"frozen": True},
    "ddp-texts": {"texts": True},
    "ddp-trl": {"trl": True},
    "fsdp-qwen3_vl": {"layer": "Qwen3VLTextDecoderLayer"},
    "fsdp-llava": {"layer": "LlamaDecoderLayer"},
    "fsdp-frozen": {"layer": "LlamaDecoderLayer", "frozen": True},
}
"""By name, what is different; a family's name, or Qwen3-VL."""


class CutTrainer(AttachMixin, ShardingTrainer):
    """FSDP on CPUs, too."""


def run(name: str, pictures: Pictures, out: Path) -> None:
    """Trains two steps of four rows, and leaves losses, weights and the temperature."""
    job, processes = JOBS[name], int(os.environ.get("WORLD_SIZE", "1"))
    family = name.partition("-")[2]
    made = MAKERS[family if family in MAKERS else "llava" if job.get("frozen") else "qwen3_vl"]()
    one = attach(made.model, made.processor, labels=pictures.open(), **BOTH)
    if job.get("frozen"):
        made.model.requires_grad_(False)
        one._parts.projector.requires_grad_(True)
    changes: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 4 // processes, "optim": "sgd",
                               "per_device_eval_batch_size": 2}  # fmt: skip
    if job.get("trl"):
        trainer = sft_trainer(made, pictures, out / name, one, **changes, gradient_checkpointing=False)
    else:
        if processes > 1 and "layer" in job:
            changes |= {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": [job["layer"]]}}
        changes |= {"ddp_find_unused_parameters": bool(job.get("texts")), "remove_unused_columns": False}
        kind = CutTrainer if "layer" in job else OwnTrainer
        data: Any = list(rows(pictures))
        if job.get("texts"):  # none of the second process's rows has a picture, whatever the order
            data = [
                row | {"images": [], "image_ids": []} if number % 4 != 1 else row for number, row in enumerate(data)
            ]
        arguments = TrainingArguments(str(out / name), **(ARGUMENTS | changes))
        trainer = kind(model=made.model, args=arguments, train_dataset=data, data_collator=Collate(made), attached=one)
    trainer.train()
    measured = one.metrics(held_out(made, pictures)) if name == "fsdp-qwen3_vl" else {}
    if name == "ddp-llava":  # the second process gets one row that is not the first one's
        measured = trainer.evaluate(rows(pictures, 3))
    cut = any(isinstance(each, DTensor) for each in made.model.parameters())
    state = get_model_state_dict(made.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if int(os.environ.get("RANK", "0")) == 0:
        lines = [line for line in trainer.state.log_history if "loss" in line]
        said = {"lines": lines, "scale": one.scale, "cut": cut, "measured": measured}
        (out / f"{name}.json").write_text(json.dumps(said))
        torch.save(state, out / f"{name}.pt")
    one.detach()


def held_out(made: Tiny, pictures: Pictures) -> list[dict[str, Any]]:
    """A batch for each of two processes: two pictures of one size, and two of which none is the other's partner."""
    batches = []
    for names in ([["wide.png"], ["other.png"]], [["tall.png"], ["odd.png"]]):
        batches.append(made.batch(pictures.batch(names)) | {"image_ids": names})
    if (rank := os.environ.get("RANK")) is None:
        return batches
    return [batches[int(rank)]]


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    root, out, *names = sys.argv[1:]
    for name in names:
        run(name, Pictures(Path(root) / "images", Path(root) / "labels"), Path(out))
    if dist.is_initialized():
        dist.destroy_process_group()

"""Attached models trained by two processes, one launch for all."""

import json
import os
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from sea_pipeline.core.errors import UserError
from tests.trainer.attach.families import MAKERS, Tiny
from tests.trainer.attach.trained import ARGUMENTS, Collate, OwnTrainer, rows, sft_trainer
from tests.trainer.attach.worlds import Pictures
from trainer.attach import Attached, AttachMixin, attach
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
    "fsdp-loop": {"loop": True},
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
    if job.get("loop"):
        trainer = own_loop(made, pictures, one, processes)
    elif job.get("trl"):
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
    if not job.get("loop"):
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


def own_loop(made: Tiny, pictures: Pictures, one: Attached, processes: int) -> Any:
    """Trains as `run` does, without L_lm; with FSDP the projector is cut by itself, and so is the root in the forward.

    The first message's advice is followed to the letter.
    """
    model, rank, lines, cut = made.model, int(os.environ.get("RANK", "0")), [], processes > 1
    if cut:
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        mesh = dist.device_mesh.init_device_mesh("cpu", (processes,))
        for module in (*one._parts.llm.layers, one._parts.projector, model):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    optimizer = torch.optim.SGD([*model.parameters(), *one.parameters()], lr=1e-2)
    names = [["wide.png"], ["tall.png"], ["other.png"], ["odd.png"]]
    mine = names[rank * 4 // processes :][: 4 // processes]  # gathered in the order of one process
    batch = made.batch([(images, "red") for images, _ in pictures.batch(mine)])
    model.train()
    while len(lines) < 2:
        l_lm, one.step = model(**batch).loss, len(lines)
        try:
            loss = one.loss(mine)
        except UserError as error:
            ((path, argument),) = re.findall(r"call model(\S*)\.set_reshard_after_forward\((.*)\)", str(error))
            assert (path, argument, cut) == ("", "False, recurse=False", True)
            model.set_reshard_after_forward(False, recurse=False)
            cut = False
            continue
        (0 * l_lm + loss).backward()  # FSDP sees a backward from the model's outputs alone
        one.average_gradients()
        optimizer.step()
        optimizer.zero_grad()
        own = torch.tensor([float(each) for each in (loss, *one.terms.values())])
        if processes > 1:
            dist.all_reduce(own.div_(processes))
        lines.append(dict(zip(("loss", *(f"loss_{name}" for name in one.terms)), own.tolist(), strict=True)))
        lines[-1]["sea_scale"] = one.scale
    return SimpleNamespace(state=SimpleNamespace(log_history=lines))


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

"""Runs by two processes: one launch trains many recipes, as a process costs seconds before it does anything."""

import json
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from sea_pipeline.core.errors import UserError
from tests.support.heard import Heard
from tests.support.launches import Ended, launched
from tests.support.run_values import copied
from tests.support.tiny_runs import colours
from trainer.recipes.recipe import Recipe
from trainer.training.align_trainer import AlignTrainer
from trainer.training.callbacks import MetricsLog
from trainer.training.run import train

CUT, WHOLE = "the weights are cut", "the weights are whole"
"""What a process says at a checkpoint."""


@dataclass(frozen=True)
class Job:
    """A recipe to train."""

    recipe: Recipe
    out: Path
    begun: tuple[Path, int] | None = None
    """A run of which `out` is a copy as a kill right after the checkpoint of a step leaves it."""
    killed: tuple[int, int] | None = None
    """(rank, step): that process ends itself by SIGKILL as it logs that step."""
    full: int | None = None
    """The rank of a process that can write no file of more than some bytes into a checkpoint."""


def launch(jobs: list[Job], processes: int = 2) -> Ended:
    """Trains them in turn by so many processes, which leave `said-RANK.json` beside each run: what it told."""
    file = jobs[0].out.parent / "jobs.json"
    file.write_text(json.dumps([[job.recipe.model_dump(mode="json"), str(job.out), job.begun, job.killed, job.full]
                                for job in jobs], default=str))  # fmt: skip
    return launched(main, (file,), file.parent / "logs", processes)


def said(out: Path, rank: int) -> list[str]:
    """What a process told of a run; the last line is the `UserError`, where there was one."""
    lines: list[str] = json.loads((out.parent / f"{out.name}-said-{rank}.json").read_text())
    return lines


def _train(recipe: Recipe, out: Path, begun: Any, full: int | None) -> None:
    rank = int(os.environ["RANK"])
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    lines: list[str] = []
    if begun and rank == 0:
        copied(Path(begun[0]), out, begun[1])
    if dist.is_initialized():
        dist.barrier()
    save_model = AlignTrainer.save_model

    def saves(trainer: AlignTrainer, *given: Any, **named: Any) -> None:
        cut = all(isinstance(value, DTensor) for value in trainer.model.parameters())  # type: ignore[union-attr]
        lines.append(CUT if cut else WHOLE)
        if rank == full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        save_model(trainer, *given, **named)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AlignTrainer, "save_model", saves)
            train(recipe, out, reporter=Heard(lines))
    except UserError as error:
        lines.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    (out.parent / f"{out.name}-said-{rank}.json").write_text(json.dumps(lines))


def _kill_at(step: int) -> None:
    logs: Any = MetricsLog.on_log

    def dies(log: MetricsLog, args: Any, state: Any, control: Any, **named: Any) -> None:
        logs(log, args, state, control, **named)
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    MetricsLog.on_log = dies  # type: ignore[assignment, method-assign]


def main() -> None:
    with colours():
        for recipe, out, begun, killed, full in json.loads(Path(sys.argv[1]).read_text()):
            if killed and killed[0] == int(os.environ["RANK"]):
                _kill_at(killed[1])
            elif killed:  # torchrun ends the others as soon as it sees one dead, perhaps before they have said why
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _train(Recipe.model_validate(recipe), Path(out), begun, full)

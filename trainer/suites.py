"""Evaluation by the public harnesses: which of their tasks make the papers' columns, and the command of each."""

import json
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt

from sea_pipeline.errors import UserError, one_line
from sea_pipeline.settings import Settings
from sea_pipeline.storage import data_folder

Suite = Literal["sea", "basic", "smoke"]
Harness = Literal["lmms_eval", "lm_eval"]
"""As their Python modules are called; a folder of `jobs/eval` with that name holds our own tasks for it."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pin(_Strict):
    """The version of a harness that the tasks were looked up in."""

    version: str
    install: str


class Column(_Strict):
    """Where a column of a table comes from."""

    harness: Harness
    task: str
    metric: str
    scale: float
    """The papers' percent are this times the harness's number."""
    note: str
    """Which split, what needs a key or a server, how it differs from the papers'."""
    options: tuple[str, ...] = ()


class _Content(_Strict):
    harnesses: dict[Harness, Pin]
    suites: dict[Suite, tuple[str, ...]]
    columns: dict[str, Column]


class SuiteSettings(Settings):
    """What `sea-pipeline eval-commands` is asked for."""

    folder: Path
    """A LLaVA folder, such as `sea-pipeline export` writes."""
    suite: Suite
    llm: Path | None = None
    """Its LLM alone, for lm-eval. Default: the folder's name with `-llm`."""
    out: Path | None = None
    """For the harnesses' results. Default: the folder's name with `-results`."""
    device: str = "cuda"
    gpus: PositiveInt = 1


class Step(NamedTuple):
    """One command."""

    column: str
    """Empty where it makes something that a later one needs."""
    note: str
    command: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """`column`, `note`, `command` as its arguments, `shell` as one line."""
        return {**self._asdict(), "shell": shlex.join(self.command)}


@cache
def _content() -> _Content:
    return _Content.model_validate(yaml.safe_load((data_folder("jobs") / "eval" / "suites.yaml").read_text("utf-8")))


def suite_columns(suite: Suite) -> dict[str, Column]:
    """The columns of a suite by their names, in the paper's order."""
    content = _content()
    return {name: content.columns[name] for name in content.suites[suite]}


def suite_pins(suite: Suite) -> dict[Harness, Pin]:
    """The harnesses that a suite needs."""
    needed = {column.harness for column in suite_columns(suite).values()}
    return {name: pin for name, pin in _content().harnesses.items() if name in needed}


def eval_steps(settings: SuiteSettings) -> list[Step]:
    """The commands of a suite, in the order in which they can be run.

    Prompts are written by the chat template of the folder; the model answers greedily, one question at a time, in
    bfloat16 on a GPU and in float32 on a CPU.

    Raises:
        UserError: the folder holds no LLaVA with a chat template; its name breaks the harnesses' arguments; a tower of
            ours with several GPUs.
    """
    llm = settings.llm or settings.folder.with_name(f"{settings.folder.name}-llm")
    for path in (settings.folder, llm):
        if "," in str(path):
            raise UserError(f"{path}: expected a path without a comma, where the harnesses cut; rename it")
    ours = _needs_our_towers(settings.folder)
    if ours and settings.gpus > 1:
        raise UserError(f"--gpus {settings.gpus}: expected 1, as transformers lacks the tower of {settings.folder}")
    columns, steps = suite_columns(settings.suite), []
    if any(column.harness == "lm_eval" for column in columns.values()) and not (llm / "config.json").is_file():
        export = ("sea-pipeline", "export", str(settings.folder), "--out", str(llm), "--llm-only")
        steps.append(Step("", "the LLM alone, for lm-eval", export))
    for name, column in columns.items():
        if column.harness == "lm_eval":
            command = [*_launch("lm_eval", settings.gpus), *_model("hf", llm, settings), "--batch_size", "8"]
        else:
            launch = _launch("lmms_eval", settings.gpus, ours=ours)
            command = [*launch, *_model("llava_hf", settings.folder, settings), "--batch_size", "1"]
        steps.append(Step(name, column.note, (*command, *_task(column, settings))))
    return steps


def _launch(harness: Harness, gpus: int, *, ours: bool = False) -> list[str]:
    """How the harness starts; with `ours`, in a process that knows our towers."""
    if ours:
        return ["python", "-c", f"import runpy, trainer.towers; runpy.run_module('{harness}', run_name='__main__')"]
    python = ["python"] if gpus == 1 else ["accelerate", "launch", "--num_processes", str(gpus)]
    return [*python, "-m", harness]


def _model(kind: str, path: Path, settings: SuiteSettings) -> list[str]:
    arguments = f"pretrained={path},dtype={'float32' if settings.device == 'cpu' else 'bfloat16'}"
    if settings.gpus > 1:  # accelerate gives each process its GPU
        return ["--model", kind, "--model_args", arguments]
    if kind == "llava_hf":  # its default, an empty device_map, is refused by transformers
        arguments += f",device_map={settings.device}"
    return ["--model", kind, "--model_args", arguments, "--device", settings.device]


def _task(column: Column, settings: SuiteSettings) -> list[str]:
    own = data_folder("jobs") / "eval" / column.harness
    include = ["--include_path", str(own)] if (own / f"{column.task}.yaml").is_file() else []
    out = settings.out or settings.folder.with_name(f"{settings.folder.name}-results")
    return ["--tasks", column.task, *column.options, *include, "--output_path", str(out)]


def _needs_our_towers(folder: Path) -> bool:
    """Whether transformers lacks the tower; refuses what the harnesses cannot read."""
    from trainer.towers import OURS  # torch

    config = _read(folder / "config.json")
    kind = config.get("model_type")
    if kind != "llava":
        raise UserError(f"{folder}: expected a LLaVA folder; found model_type {kind!r}; an LLM goes to --llm")
    if not any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        raise UserError(f"{folder}: expected a chat template; found none; write the folder with sea-pipeline export")
    return config.get("vision_config", {}).get("model_type") in OURS


def _read(file: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected a model's configuration; it cannot be read: {one_line(error)}") from error
    return config if isinstance(config, dict) else {}

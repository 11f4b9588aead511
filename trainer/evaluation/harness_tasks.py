"""Evaluation by the public harnesses: which of their tasks make the papers' columns, and the command of each."""

import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import Field, PositiveInt

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.settings import Settings, Strict
from sea_pipeline.storage.json_files import read_json
from sea_pipeline.storage.paths import data_folder
from trainer.model.run_record import kept_steps, last_step, read_run

Suite = Literal["sea", "basic", "smoke"]
Harness = Literal["lmms_eval", "lm_eval"]
"""As their Python modules are called; a folder of `jobs/eval` with that name holds our own tasks for it."""


class Pin(Strict):
    """The version of a harness that the tasks were looked up in."""

    version: str
    install: str


class Column(Strict):
    """Where a column of a table comes from."""

    harness: Harness
    task: str
    metric: str
    scale: float
    """The papers' percent are this times the harness's number."""
    note: str
    """Which split, what needs a key or a server, how it differs from the papers'."""
    options: tuple[str, ...] = ()


class _Content(Strict):
    harnesses: dict[Harness, Pin]
    suites: dict[Suite, tuple[str, ...]]
    columns: dict[str, Column]


class SuiteSettings(Settings):
    """What `sea-pipeline eval-commands` is asked for."""

    folder: Path
    """A LLaVA folder, such as `sea-pipeline export` writes, or a run that has kept checkpoints."""
    suite: Suite
    llm: Path | None = None
    """Its LLM alone, for lm-eval. Default: the folder's name with `-llm`. Those of a run go below `out`."""
    out: Path | None = None
    """For the harnesses' results. Default: the folder's name with `-results`."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cuda"
    """It goes into the harnesses' arguments as it is."""
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


def llm_columns(suite: Suite) -> dict[str, Column]:
    """Those of a suite that ask the LLM alone."""
    return {name: column for name, column in suite_columns(suite).items() if column.harness == "lm_eval"}


def suite_pins(suite: Suite, steps: Sequence[Step] | None = None) -> dict[Harness, Pin]:
    """The harnesses that a suite needs, or some of its commands do."""
    asked = None if steps is None else {step.column for step in steps}
    needed = {column.harness for name, column in suite_columns(suite).items() if asked is None or name in asked}
    return {name: pin for name, pin in _content().harnesses.items() if name in needed}


def eval_steps(settings: SuiteSettings) -> list[Step]:
    """The commands of a suite, in the order in which they can be run; of a run, those of `curve_steps`.

    Prompts are written by the chat template of the folder; the model answers greedily, one question at a time, in
    bfloat16 on a GPU and in float32 on a CPU.

    Raises:
        UserError: the folder holds no LLaVA with a chat template; its name breaks the harnesses' arguments; a tower of
            ours with several GPUs.
    """
    if (settings.folder / "run.json").is_file():
        return curve_steps(settings)
    ours = _has_our_tower(_llava_config(settings.folder))
    doubled = _doubles_bos(settings.folder)
    if ours and settings.gpus > 1:
        raise UserError(f"--gpus {settings.gpus}: expected 1, as transformers lacks the tower of {settings.folder}")
    columns, steps = suite_columns(settings.suite), []
    llm = settings.llm or _beside(settings.folder, "-llm")
    needs_llm = any(column.harness == "lm_eval" for column in columns.values())
    for path in (settings.folder, llm) if needs_llm else (settings.folder,):
        _check_path(path)
    if needs_llm and not (llm / "config.json").is_file():
        export = ("sea-pipeline", "export", str(settings.folder), "--out", str(llm), "--llm-only")
        steps.append(Step("", "the LLM alone, for lm-eval", export))
    for name, column in columns.items():
        if column.harness == "lm_eval":
            command = _ask_llm(llm, settings)
        else:
            launch = _launch("trainer.lmms_eval" if doubled else "lmms_eval", settings.gpus, ours=ours and not doubled)
            command = [*launch, *_model("llava_hf", settings.folder, settings), "--batch_size", "1"]
        out = settings.out or _beside(settings.folder, "-results")
        steps.append(Step(name, column.note, (*command, *_task(column, out))))
    return steps


def curve_steps(settings: SuiteSettings) -> list[Step]:
    """The commands that evaluate the LLM along a run: as it began, at each step that is kept so far, at the end.

    Results go to `NAME/step-STEP` below `out`, NAME being the run's, and each step's LLM beside them, to
    `step-STEP-llm`.

    Raises:
        UserError: the run has kept nothing; no column of the suite is for the LLM alone; `out` holds another run.
    """
    run, columns = settings.folder, llm_columns(settings.suite)
    if not columns:
        raise UserError(
            f"--suite {settings.suite}: its columns show images, and along a run the LLM alone is asked; expected sea "
            "or smoke, or a folder that sea-pipeline export --checkpoint has written"
        )
    if settings.llm is not None:
        raise UserError("--llm: is for one model; the LLMs of a run's checkpoints go below --out")
    record, last = read_run(run, finished=False), last_step(run)
    if not (kept := kept_steps(run)):
        raise UserError(
            f"{run}: expected a run that has kept checkpoints; found none; train with keep_checkpoints, such as [0.5], "
            "or name the folder that sea-pipeline export makes of its end"
        )
    root = (settings.out or _beside(run, "-results")) / record.recipe.name
    _check_path(root)
    steps = []
    for step in [0, *kept, *([] if last is None else [last])]:
        out, llm = root / f"step-{step}", root / f"step-{step}-llm"
        if not (llm / "config.json").is_file():
            export = ("sea-pipeline", "export", str(run), "--checkpoint", str(step), "--out", str(llm), "--llm-only")
            steps.append(Step("", f"the LLM of step {step}", export))
        elif record.fingerprint not in (llm / "README.md").read_text("utf-8"):
            raise UserError(f"{llm}: is not of the run {run}; choose another --out")
        for name, column in columns.items():
            note = f"step {step}" if step else f"step 0; {column.note}"
            steps.append(Step(name, note, (*_ask_llm(llm, settings), *_task(column, out))))
    return steps


def _check_path(path: Path) -> None:
    if "," in str(path):
        raise UserError(f"{path}: expected a path without a comma, where the harnesses cut; rename it")


def _ask_llm(llm: Path, settings: SuiteSettings) -> list[str]:
    return [*_launch("lm_eval", settings.gpus), *_model("hf", llm, settings), "--batch_size", "8"]


def _launch(module: str, gpus: int, *, ours: bool = False) -> list[str]:
    """How a harness starts; with `ours`, in a process that knows our towers."""
    if ours:
        return [
            "python",
            "-P",
            "-c",
            f"import runpy, trainer.towers; runpy.run_module('{module}', run_name='__main__')",
        ]
    python = ["python"] if gpus == 1 else ["accelerate", "launch", "--num_processes", str(gpus)]
    if module.startswith("trainer."):  # not a user's own trainer.py, in the folder that the script is run in
        python = ["python", "-P"] if gpus == 1 else ["env", "PYTHONSAFEPATH=1", *python]
    return [*python, "-m", module]


def _model(kind: str, path: Path, settings: SuiteSettings) -> list[str]:
    arguments = f"pretrained={path},dtype={'float32' if settings.device == 'cpu' else 'bfloat16'}"
    if settings.gpus > 1:  # accelerate gives each process its GPU
        return ["--model", kind, "--model_args", arguments]
    if kind == "llava_hf":  # its default, an empty device_map, is refused by transformers
        arguments += f",device_map={settings.device}"
    return ["--model", kind, "--model_args", arguments, "--device", settings.device]


def _task(column: Column, out: Path) -> list[str]:
    own = data_folder("jobs") / "eval" / column.harness
    include = ["--include_path", str(own)] if (own / f"{column.task}.yaml").is_file() else []
    return ["--tasks", column.task, *column.options, *include, "--output_path", str(out)]


def _beside(folder: Path, ending: str) -> Path:
    """A folder's neighbour that is called after it; `.` and `..` have their names from where they are."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(named.name + ending)


def _llava_config(folder: Path) -> Mapping[str, Any]:
    """The folder's `config.json`; refuses what the harnesses cannot read."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: expected a LLaVA folder, such as sea-pipeline export writes; found no config.json")
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind != "llava":
        raise UserError(f"{folder}: expected a LLaVA folder; found model_type {kind!r}; an LLM goes to --llm")
    if not any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        raise UserError(f"{folder}: expected a chat template; found none; write the folder with sea-pipeline export")
    return config


def _has_our_tower(config: Mapping[str, Any]) -> bool:
    """Whether the tower is one that transformers lacks."""
    from trainer.towers import OURS  # torch

    return (config.get("vision_config") or {}).get("model_type") in OURS


def _doubles_bos(folder: Path) -> bool:
    """Whether the chat template writes the BOS that the tokenizer adds, too: lmms-eval would have both do it."""
    if not (folder / "tokenizer_config.json").is_file():
        return False
    from transformers import AutoTokenizer

    from trainer.model.chat_template import adds_bos, writes_bos
    from trainer.model.prompts import chat_template

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return adds_bos(tokenizer) and writes_bos(chat_template(tokenizer) or "")

"""List the public harnesses' tasks that make the papers' columns, and build the command of each."""

import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import Field, PositiveInt

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import SILENT, Reporter
from sea_pipeline.core.settings import Settings, Strict
from sea_pipeline.storage.json_files import read_json
from sea_pipeline.storage.paths import data_folder
from trainer.model.existing_folder import EXISTING, has_attached, is_existing
from trainer.model.run_record import kept_steps, last_step, read_run
from trainer.model.weight_files import beside

Suite = Literal["sea", "basic", "smoke"]
Harness = Literal["lmms_eval", "lm_eval"]
"""Names of the harnesses' Python modules. A folder of `jobs/eval` with that name holds our own tasks for it."""


class Pin(Strict):
    """The version of a harness in which the tasks were looked up."""

    version: str
    install: str


class Column(Strict):
    """The task that a column of a table comes from."""

    harness: Harness
    task: str
    metric: str
    scale: float
    """Factor from the harness's score to the papers' percent."""
    note: str
    """Which split it is, what needs a key or a server, and how it differs from the papers'."""
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
    """A command of a suite."""

    column: str
    """The column that it fills; empty if it prepares a later command."""
    note: str
    command: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return `column`, `note`, `command` as its arguments, and `shell` as one line."""
        return {**self._asdict(), "shell": shlex.join(self.command)}


@cache
def _content() -> _Content:
    return _Content.model_validate(yaml.safe_load((data_folder("jobs") / "eval" / "suites.yaml").read_text("utf-8")))


def suite_columns(suite: Suite) -> dict[str, Column]:
    """Return the columns of a suite by name, in the paper's order."""
    content = _content()
    return {name: content.columns[name] for name in content.suites[suite]}


def llm_columns(suite: Suite) -> dict[str, Column]:
    """Return the columns of a suite that test the LLM alone."""
    return {name: column for name, column in suite_columns(suite).items() if column.harness == "lm_eval"}


def suite_pins(suite: Suite, steps: Sequence[Step] | None = None) -> dict[Harness, Pin]:
    """Return the harnesses that a suite, or some of its commands, needs."""
    asked = None if steps is None else {step.column for step in steps}
    needed = {column.harness for name, column in suite_columns(suite).items() if asked is None or name in asked}
    return {name: pin for name, pin in _content().harnesses.items() if name in needed}


def eval_steps(settings: SuiteSettings, reporter: Reporter = SILENT) -> list[Step]:
    """List the commands of a suite in an order in which they can be run.

    For a run's folder they are those of `curve_steps`. Prompts are written by the folder's chat template. The model
    answers greedily, one question at a time, in bfloat16 on a GPU and in float32 on a CPU. The LLM of a model that was
    attached to is asked only if `llm` has it, because nothing exports it.

    Raises:
        UserError: the folder holds no LLaVA with a chat template, its name would break the harnesses' arguments, `llm`
            is no model, the LLM that lies at its default is another's, or the tower is one of ours and several GPUs are
            asked for.
    """
    if has_attached(settings.folder):
        raise _no_curve(settings.folder)
    if (settings.folder / "run.json").is_file():
        return curve_steps(settings)
    ours = _has_our_tower(_llava_config(settings.folder))
    doubled = _doubles_bos(settings.folder)
    if ours and settings.gpus > 1:
        raise UserError(f"--gpus {settings.gpus}: expected 1, as transformers lacks the tower of {settings.folder}")
    columns, steps = suite_columns(settings.suite), list[Step]()
    llm = settings.llm or beside(settings.folder, "-llm")
    if is_existing(settings.folder) and not (llm / "config.json").is_file():
        left_out = list(llm_columns(settings.suite))
        columns = {name: column for name, column in columns.items() if name not in left_out}
        if left_out and settings.llm:
            raise UserError(f"--llm {llm}: expected the folder of an LLM; found no config.json; name the LLM's folder")
        if left_out:
            reporter.warning(
                f"{settings.folder}: {', '.join(left_out)} is left out, because export takes no LLM out of a model "
                "that a run attached to; name a folder of its LLM with --llm"
            )
    needs_llm = any(column.harness == "lm_eval" for column in columns.values())
    for path in (settings.folder, llm) if needs_llm else (settings.folder,):
        _check_path(path)
    if needs_llm:
        steps += _llm_export(llm, settings)
    for name, column in columns.items():
        if column.harness == "lm_eval":
            command = _ask_llm(llm, settings)
        else:
            launch = _launch("trainer.lmms_eval" if doubled else "lmms_eval", settings.gpus, ours=ours and not doubled)
            command = [*launch, *_model("llava_hf", settings.folder, settings), "--batch_size", "1"]
        out = settings.out or beside(settings.folder, "-results")
        steps.append(Step(name, column.note, (*command, *_task(column, out))))
    return steps


def _llm_export(llm: Path, settings: SuiteSettings) -> list[Step]:
    """Return the command that makes the LLM's folder, or none if it is there."""
    if not (llm / "config.json").is_file():
        export = ("sea-pipeline", "export", str(settings.folder), "--out", str(llm), "--llm-only")
        return [Step("", "the LLM alone, for lm-eval", export)]
    if settings.llm is None and not is_existing(settings.folder):  # of an existing model nothing exports it
        _check_llm(llm, settings.folder)
    return []


def _check_llm(llm: Path, folder: Path) -> None:
    """Refuse the LLM of another model, such as of one that had the folder's name before.

    The first values of each weight are compared, because all may be gigabytes. An LLM's own folder has other names for
    its body and its head.
    """
    from trainer.model.tensor_files import LLM, read_weights  # imported here because it loads torch

    def weights(path: Path) -> dict[str, Any]:
        return {entry.name.removeprefix(LLM).partition(".")[2]: entry.read() for entry in read_weights(path)}

    with suppress(UserError):  # weights that cannot be read are no reason to trust them
        whole, alone = weights(folder), weights(llm)
        if all(name in whole and _begin_alike(value, whole[name]) for name, value in alone.items()):
            return
    raise UserError(
        f"{llm}: expected the LLM of {folder}; found other weights, or none that can be read; remove it, or name the "
        "folder of an LLM with --llm"
    )


def _begin_alike(value: Any, other: Any) -> bool:  # noqa: ANN401 - two tensors
    first, second = (one.flatten()[:4096].nan_to_num() for one in (value, other))
    return value.shape == other.shape and bool((first == second.to(first.dtype)).all())


def _no_curve(run: Path) -> UserError:
    """Make the error of a run that trained an existing model."""
    model = run / "model"
    if model.is_dir():
        _llava_config(model)  # which refuses other families
    return UserError(f"{run}: is a run of model: {{attach: …}}, which keeps its end alone; give that, {model}")


def curve_steps(settings: SuiteSettings) -> list[Step]:
    """List the commands that evaluate the LLM along a run.

    They cover the run's start, each step kept so far, and its end. Results go to `NAME/step-STEP` below `out`, with the
    run's name; each step's LLM goes next to them, to `step-STEP-llm`.

    Raises:
        UserError: the run has kept no checkpoint, no column of the suite is for the LLM alone, or `out` holds another
            run.
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
    root = (settings.out or beside(run, "-results")) / record.recipe.name
    _check_path(root)
    steps = []
    for step in [0, *kept, *([] if last is None else [last])]:
        out, llm = root / f"step-{step}", root / f"step-{step}-llm"
        if not (llm / "config.json").is_file():
            export = ("sea-pipeline", "export", str(run), "--checkpoint", str(step), "--out", str(llm), "--llm-only")
            steps.append(Step("", f"the LLM of step {step}", export))
        elif _made_of(llm) != record.fingerprint:
            raise UserError(f"{llm}: is not of the run {run}; choose another --out")
        for name, column in columns.items():
            note = f"step {step}" if step else f"step 0; {column.note}"
            steps.append(Step(name, note, (*_ask_llm(llm, settings), *_task(column, out))))
    return steps


def _made_of(llm: Path) -> str | None:
    """Return the fingerprint of the run that an exported LLM is of, the last of its card, or None if it says none."""
    with suppress(OSError, ValueError, IndexError):
        return str(re.findall(r"settings and inputs together \| `(.+)`", (llm / "README.md").read_text("utf-8"))[-1])
    return None


def _check_path(path: Path) -> None:
    if "," in str(path):
        raise UserError(f"{path}: expected a path without a comma, where the harnesses cut; rename it")


def _ask_llm(llm: Path, settings: SuiteSettings) -> list[str]:
    return [*_launch("lm_eval", settings.gpus), *_model("hf", llm, settings), "--batch_size", "8"]


def _launch(module: str, gpus: int, *, ours: bool = False) -> list[str]:
    """Build the start of a harness's command.

    With `ours` its process knows our towers.
    """
    if ours:
        return [
            "python",
            "-P",
            "-c",
            f"import runpy, trainer.towers; runpy.run_module('{module}', run_name='__main__')",
        ]
    python = ["python"] if gpus == 1 else ["accelerate", "launch", "--num_processes", str(gpus)]
    if module.startswith("trainer."):  # else a trainer.py in the current folder would be run
        python = ["python", "-P"] if gpus == 1 else ["env", "PYTHONSAFEPATH=1", *python]
    return [*python, "-m", module]


def _model(kind: str, path: Path, settings: SuiteSettings) -> list[str]:
    arguments = f"pretrained={path},dtype={'float32' if settings.device == 'cpu' else 'bfloat16'}"
    if settings.gpus > 1:  # accelerate assigns a GPU to each process
        return ["--model", kind, "--model_args", arguments]
    if kind == "llava_hf":  # transformers refuses the default, an empty device_map
        arguments += f",device_map={settings.device}"
    return ["--model", kind, "--model_args", arguments, "--device", settings.device]


def _task(column: Column, out: Path) -> list[str]:
    own = data_folder("jobs") / "eval" / column.harness
    include = ["--include_path", str(own)] if (own / f"{column.task}.yaml").is_file() else []
    return ["--tasks", column.task, *column.options, *include, "--output_path", str(out)]


def _llava_config(folder: Path) -> Mapping[str, Any]:
    """Read the folder's `config.json`, and refuse what the harnesses cannot read."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: expected a LLaVA folder, such as sea-pipeline export writes; found no config.json")
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind != "llava":
        advice = "run lmms-eval itself, with its --model for it" if kind in EXISTING else "an LLM goes to --llm"
        raise UserError(f"{folder}: expected a LLaVA folder; found model_type {kind!r}; {advice}")
    if not any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        raise UserError(f"{folder}: expected a chat template; found none; write the folder with sea-pipeline export")
    return config


def _has_our_tower(config: Mapping[str, Any]) -> bool:
    """Tell whether the tower is one that transformers lacks."""
    from trainer.towers import OURS  # imported here because it loads torch

    return (config.get("vision_config") or {}).get("model_type") in OURS


def _doubles_bos(folder: Path) -> bool:
    """Tell whether both the chat template and the tokenizer add the BOS.

    lmms-eval would then write it twice.
    """
    if not (folder / "tokenizer_config.json").is_file():
        return False
    from transformers import AutoTokenizer

    from trainer.model.chat_template import adds_bos, writes_bos
    from trainer.model.prompts import chat_template

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return adds_bos(tokenizer) and writes_bos(chat_template(tokenizer) or "")

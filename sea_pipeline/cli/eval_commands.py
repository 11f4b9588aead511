"""The command that hands an exported model to the public harnesses, and reads what they found."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.own_options import json_option, local_output
from sea_pipeline.core.errors import UserError

if TYPE_CHECKING:
    from trainer.evaluation.harness_tasks import Suite


@command
def eval_commands(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A LLaVA folder, such as export writes, or the folder of a run that has kept checkpoints.",
            show_default=False,
            autocompletion=completion.runs_and_models,
        ),
    ] = None,
    suite: Annotated[
        Literal["sea", "basic", "smoke"],
        typer.Option(
            help="The tasks. sea: those of SEA's tables. basic: those of BASIC's tables. smoke: two small ones of ours "
            "that test the setup."
        ),
    ] = "sea",
    llm: Annotated[
        Path | None, typer.Option(help="The folder of the model's LLM alone, for lm-eval. Default: FOLDER-llm.")
    ] = None,
    out: Annotated[Path | None, local_output("The folder for the harnesses' results. Default: FOLDER-results.")] = None,
    device: Annotated[
        str | None, typer.Option(help="The device that the harnesses use: cpu, cuda or cuda:N. Default: cuda.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="The number of GPUs that share the questions. Default: 1.")
    ] = None,
    collect: Annotated[
        Path | None,
        typer.Option(help="Make the table of results instead, from the harnesses' output folder or one file of it."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="With --collect: the results of another model, to compare with.")
    ] = None,
    as_json: Annotated[
        bool,
        json_option(
            "Print JSON: `suite`, `harnesses`, `steps`; with --collect `suite`, `columns`, `papers`, `ours`, "
            "`baseline`, `difference`, `notes`; for the checkpoints of runs `suite`, `curves`, `papers`, `notes`."
        ),
    ] = False,
) -> None:
    """Print the commands that evaluate a model with lmms-eval and lm-eval, or a table of their results.

    The commands are a shell script. Comments say what each needs, such as a
    judge's key. With --collect it reads their results, and prints the papers'
    table. For a run, the LLM alone is evaluated at each step of keep_checkpoints,
    with one line per step in the table (SEA's Figure 3 a).

    Example: sea-pipeline eval-commands exports/x --suite sea
    """
    options = {"folder": folder, "llm": llm, "out": out, "device": device, "gpus": gpus}
    asked = {name: value for name, value in options.items() if value is not None}
    if collect is not None:
        if asked:
            given = ", ".join("FOLDER" if name == "folder" else f"--{name}" for name in asked)
            raise UserError(f"{given}: for the commands alone; leave it out with --collect, which reads what they left")
        _show_results(suite, collect, baseline, as_json)
        return
    if folder is None:
        raise UserError("eval-commands: expected a model's folder, or --collect RESULTS; see --help")
    if baseline is not None:
        raise UserError("--baseline: is for --collect RESULTS, to be set beside it")
    _show_commands(asked | {"suite": suite}, as_json)


def _show_results(suite: "Suite", results: Path, baseline: Path | None, as_json: bool) -> None:
    """Print the table of what the harnesses left, or one line a step for the checkpoints of runs."""
    from sea_pipeline.cli.tables import training as training_tables
    from trainer.evaluation import harness_results

    if curves := harness_results.collect_curves(suite, results):
        if baseline is not None:
            raise UserError("--baseline: is for one model; the results along runs go below one folder, RESULTS")
        if as_json:
            print_json({"suite": suite, **curves.to_json()})
        else:
            training_tables.curve_tables(curves)
        return
    table = harness_results.collect(suite, results, baseline)
    if as_json:
        print_json({"suite": suite, **table.to_json()})
    else:
        training_tables.collected_table(table)


def _show_commands(asked: dict[str, Any], as_json: bool) -> None:
    """Print the shell script that runs the harnesses, or its steps."""
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.tables import training as training_tables
    from trainer.evaluation.harness_tasks import SuiteSettings, eval_steps, suite_pins

    settings = SuiteSettings.of(**asked)
    steps = eval_steps(settings, terminal.Terminal())
    pins = suite_pins(settings.suite, steps)
    if as_json:
        harnesses = {name: pin.model_dump() for name, pin in pins.items()}
        print_json({"suite": settings.suite, "harnesses": harnesses, "steps": [step.to_json() for step in steps]})
    else:
        training_tables.eval_script(pins, steps)

"""The command that trains models."""

from pathlib import Path
from typing import Annotated

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.own_options import json_option, local_output


@command
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe file, or a name that `recipes` lists. Default: demo, on the packaged sample photos.",
            show_default=False,
            autocompletion=completion.recipes,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a value of the recipe: KEY=VALUE, such as loss.sea.weight=10. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        local_output("The output folder. Default: for each stage a folder in runs/train, named after the settings."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Fail if there is no run to go on with. Without this option, one is begun.")
    ] = False,
    as_json: Annotated[
        bool, json_option("Print JSON: `runs`, one per stage, each with `stage`, `folder`, `model`, `summary`.")
    ] = False,
) -> None:
    """Train a model as a recipe says.

    It reads the recipe's model, data and labels, and writes the run with its
    metrics and the trained model. A run that was stopped goes on from its newest
    checkpoint.

    Example: sea-pipeline train demo --set loss.sea.weight=10
    """
    from trainer.recipes.paper_rows import named_recipes
    from trainer.training.checks import check_recipes

    recipes = named_recipes(recipe or "demo", overrides or [])
    check_recipes(recipes, out)
    from sea_pipeline.cli.tables import training as training_tables  # late, to report mistakes in a recipe at once
    from trainer.model.fsdp import is_first_process
    from trainer.training.run import train_stages

    runs = train_stages(recipes, out, resume=resume, reporter=training_tables.train_reporter())
    if not is_first_process():
        return
    if as_json:
        print_json({"runs": [{"stage": stage, **run.to_json()} for stage, run in runs.items()]})
        return
    for name, run in runs.items():
        training_tables.run_table(run, name)

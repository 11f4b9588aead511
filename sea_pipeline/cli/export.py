"""The command that writes a trained model for other programs."""

from inspect import Parameter
from typing import Annotated

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command_with
from sea_pipeline.cli.own_options import json_option
from sea_pipeline.core.errors import UserError


def options() -> list[Parameter]:
    """Make the options from `ExportSettings`, whose `kind` is given by --llm-only and --projector-only."""
    from sea_pipeline.cli.options import options_of
    from trainer.export.settings import ExportSettings

    return options_of(
        ExportSettings,
        absent=("kind",),
        arguments={"source": None},
        in_range=("checkpoint", "names", "compat"),
        hidden=("compat",),
        offered={"source": completion.runs_and_models},
    )


@command_with(options)
def export(
    *,
    llm_only: Annotated[bool, typer.Option("--llm-only", help="Write only the LLM, as a causal LM.")] = False,
    projector_only: Annotated[
        bool, typer.Option("--projector-only", help="Write only the projector, named as in LLaVA's own code.")
    ] = False,
    as_json: Annotated[
        bool, json_option("Print JSON: `folder`, `kind`, `what`, `tensors`, `bytes`, `reader`, `notes`, `pushed`.")
    ] = False,
    **asked: object,
) -> None:
    """Write a trained model for other programs.

    It reads a run or a LLaVA folder, and writes a LLaVA folder with a model
    card. The folder needs nothing of sea-pipeline, unless its vision tower is
    packaged or s2.

    Example: sea-pipeline export runs/train/x --out exports/x
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.options import settings_of
    from sea_pipeline.cli.tables import training as training_tables
    from trainer.export.checks import check_export
    from trainer.export.settings import ExportSettings

    if llm_only and projector_only:
        raise UserError("--llm-only, --projector-only: expected one of them; for both parts export twice")
    kind = "llm" if llm_only else "projector" if projector_only else "model"
    settings = settings_of(ExportSettings, asked | {"kind": kind})
    check_export(settings)
    if settings.compat is not None:
        terminal.warning("--compat is --names and --rescale-projector now; the old name goes with version 0.2")
    from trainer.export.run import export_model  # late, to report mistakes in the settings at once

    with terminal.busy(f"writing {settings.out}"):
        done = export_model(settings)
    if as_json:
        print_json(done.to_json())
    else:
        training_tables.export_table(done)

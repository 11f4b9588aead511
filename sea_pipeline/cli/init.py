"""The command that makes a model folder from parts."""

from inspect import Parameter
from typing import Annotated

from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command_with
from sea_pipeline.cli.own_options import json_option


def options() -> list[Parameter]:
    """Make the options from `InitSettings`."""
    from sea_pipeline.cli.options import options_of
    from trainer.model.settings import InitSettings

    return options_of(InitSettings)


@command_with(options)
def init(
    *,
    as_json: Annotated[bool, json_option("Print JSON: `folder`, `grid` as rows and columns, `vocabulary`.")] = False,
    **asked: object,
) -> None:
    """Make a LLaVA model folder from a vision tower and an LLM.

    It reads the weights of both, and writes them with a new projector between
    them to a new folder.

    Example: sea-pipeline init --vision packaged --llm packaged --out runs/models/mine
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.options import settings_of
    from trainer.model.checks import check_init
    from trainer.model.settings import InitSettings

    settings = settings_of(InitSettings, asked)
    check_init(settings)
    from trainer.model.assemble import init_model  # late, to report mistakes in the settings at once
    from trainer.model.load import open_model_folder

    out = settings.out
    with terminal.busy(f"making {out}"):
        init_model(**settings.model_dump())
    made = open_model_folder(out)
    if as_json:
        print_json({"folder": str(out), "grid": made.grid, "vocabulary": made.vocabulary})
        return
    rows, columns = made.grid
    terminal.output.print(f"{out}: {rows} x {columns} visual tokens an image, {made.vocabulary:,} tokens of the LLM")

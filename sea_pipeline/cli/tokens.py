"""The command that shows what a row of data trains."""

from inspect import Parameter
from typing import Annotated

from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command_with
from sea_pipeline.cli.own_options import json_option


def options() -> list[Parameter]:
    """Make the options from `TokensSettings`."""
    from sea_pipeline.cli.options import options_of
    from trainer.data.settings import TokensSettings

    return options_of(TokensSettings, arguments={"model": None})


@command_with(options)
def tokens(
    *,
    as_json: Annotated[
        bool,
        json_option(
            'Print JSON, one line per row: `id`, `ids` with images as ["image", tokens], and `trained` as '
            "[start, end) positions; or `id` and `refused`."
        ),
    ] = False,
    **asked: object,
) -> None:
    """Show the tokens of data rows, and which of them are trained.

    Trained tokens stand between « and ». It reads the tokenizer and the data,
    but no weights.

    Example: sea-pipeline tokens runs/models/mine --data photos.json --template plain --limit 3
    """
    from sea_pipeline.cli.options import settings_of
    from sea_pipeline.cli.tables import training as training_tables
    from trainer.data.settings import TokensSettings

    settings = settings_of(TokensSettings, asked)
    from trainer.data.row_tokens import row_tokens  # late, to report mistakes in the settings at once

    for row in row_tokens(settings):
        if as_json:
            print_json(row.to_json())
        else:
            training_tables.token_row(row)

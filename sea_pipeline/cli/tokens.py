"""The command that shows what a row of data trains."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command


@command
def tokens(
    model: Annotated[
        str,
        typer.Argument(
            help="A LLaVA folder; or an LLM as init takes it, with --visual-tokens.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ],
    data: Annotated[Path, typer.Option(help="A LLaVA .json or .jsonl file.")],
    template: Annotated[
        Literal["plain", "vicuna_v1", "own"], typer.Option(help="How conversations are written; own: the LLM's way.")
    ] = "own",
    max_length: Annotated[int, typer.Option(help="Tokens of a row at most, the image's included.")] = 2048,
    limit: Annotated[int | None, typer.Option(help="Only so many rows, from the first on.")] = None,
    visual_tokens: Annotated[
        int | None, typer.Option(help="For an LLM: how many tokens an image becomes, such as 576.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help='Print JSON, a line a row: `id`, `ids` with images as ["image", tokens], `trained` as [start, end) '
            "positions; or `id` and `refused`.",
        ),
    ] = False,
) -> None:
    """Show what a row trains: its tokens, the trained ones between « and ». No weights are read.

    Example: sea-pipeline tokens runs/models/mine --data photos.json --template plain --limit 3
    """
    from sea_pipeline.cli.tables import training as training_tables
    from trainer.data.row_tokens import TokensSettings, row_tokens

    settings = TokensSettings.of(
        model=model, data=data, template=template, max_length=max_length, limit=limit, visual_tokens=visual_tokens
    )
    for row in row_tokens(settings):
        if as_json:
            print_json(row.to_json())
        else:
            training_tables.token_row(row)

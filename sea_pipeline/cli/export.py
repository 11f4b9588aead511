"""The command that writes a trained model for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.options import local_output
from sea_pipeline.core.errors import UserError


@command
def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run's folder, or a LLaVA folder.", show_default=False, autocompletion=completion.runs_and_models
        ),
    ],
    out: Annotated[Path, local_output("The new folder.")],
    checkpoint: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of a run, the weights of this step: one of keep_checkpoints, or 0. Default: its end."
        ),
    ] = None,
    names: Annotated[
        int | None,
        typer.Option(
            min=4,
            max=5,
            help="Version of transformers whose names weights and settings have. transformers 4, 5 and vLLM read 4's, "
            "the default where they can say all.",
        ),
    ] = None,
    rescale_projector: Annotated[
        bool,
        typer.Option(
            "--rescale-projector",
            help="For transformers 4 and Gemma: divide the projector by sqrt(width), by which that version multiplies "
            "visual tokens. Others do not read the folder then.",
        ),
    ] = False,
    compat: Annotated[int | None, typer.Option(min=4, max=5, hidden=True)] = None,
    llm_only: Annotated[bool, typer.Option("--llm-only", help="The LLM alone, as a causal LM.")] = False,
    projector_only: Annotated[
        bool, typer.Option("--projector-only", help="The projector alone, named as LLaVA's own code does.")
    ] = False,
    file_format: Annotated[
        Literal["safetensors", "bin"], typer.Option("--format", help="Of the projector's file; bin is torch's.")
    ] = "safetensors",
    push: Annotated[
        str | None, typer.Option(help="OWNER/NAME on the Hugging Face hub; a new repository is private.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print JSON: `folder`, `kind`, `what`, `tensors`, `bytes`, `reader`, `notes`, `pushed`."
        ),
    ] = False,
) -> None:
    """Write a trained model for other programs: a LLaVA folder with a model card, which needs nothing of ours.

    Example: sea-pipeline export runs/train/x --out exports/x
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.tables import training as training_tables
    from trainer.export.run import ExportSettings, export_model

    if llm_only and projector_only:
        raise UserError("--llm-only, --projector-only: expected one of them; for both parts export twice")
    kind = "llm" if llm_only else "projector" if projector_only else "model"
    settings = ExportSettings.of(
        source=source,
        out=out,
        checkpoint=checkpoint,
        kind=kind,
        names=names,
        rescale_projector=rescale_projector,
        compat=compat,
        format=file_format,
        push=push,
    )
    with terminal.busy(f"writing {out}"):
        done = export_model(settings)
    if as_json:
        print_json(done.to_json())
    else:
        training_tables.export_table(done)

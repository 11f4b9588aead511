"""The command that makes a model folder from parts."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.options import local_output


@command
def init(
    vision: Annotated[
        str, typer.Option(help="packaged, s2:SPEC, or a folder or hub name of a CLIP, SigLIP or DINOv2.")
    ],
    llm: Annotated[str, typer.Option(help="packaged, a .gguf file, or a folder or hub name of a causal LM.")],
    out: Annotated[Path, local_output("The new model folder.")],
    projector: Annotated[
        Literal["mlp2x_gelu", "linear"], typer.Option(help="LLaVA-1.5's two layers, or one.")
    ] = "mlp2x_gelu",
    feature_layer: Annotated[
        int | None, typer.Option(help="Which hidden state of the tower. Default: -2, or -1 for packaged and s2.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the projector's weights.")] = 0,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of all weights.")] = "float32",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: `folder`, `grid` as rows and columns, `vocabulary`.")
    ] = False,
) -> None:
    """Make a LLaVA model folder of a vision tower and an LLM, with a new projector between them.

    Example: sea-pipeline init --vision packaged --llm packaged --out runs/models/mine
    """
    from sea_pipeline.cli import terminal
    from trainer.model.assemble import init_model
    from trainer.model.load import open_model_folder

    with terminal.busy(f"making {out}"):
        init_model(vision, llm, out, projector=projector, feature_layer=feature_layer, seed=seed, dtype=dtype)
    made = open_model_folder(out)
    if as_json:
        print_json({"folder": str(out), "grid": made.grid, "vocabulary": made.vocabulary})
        return
    rows, columns = made.grid
    terminal.output.print(f"{out}: {rows} x {columns} visual tokens an image, {made.vocabulary:,} tokens of the LLM")

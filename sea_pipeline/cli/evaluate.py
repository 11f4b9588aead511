"""The command that measures a model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.options import Device, local_output


@command
def evaluate(
    model: Annotated[
        Path, typer.Argument(help="A LLaVA folder.", show_default=False, autocompletion=completion.models)
    ],
    data: Annotated[str, typer.Option(help="A LLaVA .json or .jsonl file, or `samples`.")],
    labels: Annotated[
        str | None,
        typer.Option(
            help="Labels of the images; without them what needs words of patches is not measured.",
            autocompletion=completion.labels,
        ),
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that the paths in the data are relative to. Default: the data's own.")
    ] = None,
    template: Annotated[
        Literal["plain", "vicuna_v1", "own"], typer.Option(help="How conversations are written; own: the LLM's way.")
    ] = "own",
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Carry labels of another grid or crop over by their crop boxes.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Name the LLM token nearest to each visual token at each layer.")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Describe images from visual tokens, and from the tokens nearest to them."),
    ] = False,
    lens: Annotated[
        Literal["contextual"] | None,
        typer.Option(
            help="Compare visual tokens, layer by layer, with words as the LLM reads them in sentences (LatentLens), "
            "beside its input embeddings: how many are nearest to a word of their own photo's captions."
        ),
    ] = None,
    lens_data: Annotated[
        str | None,
        typer.Option(
            help="For --lens: a LLaVA .json or .jsonl file with the sentences, or `samples`. Default: what the run of "
            "the model was trained on."
        ),
    ] = None,
    limit_images: Annotated[
        int | None, typer.Option(min=1, help="Images for --layers, --lens (default: all) and --replace (default: 8).")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a description at most.")] = 48,
    questions: Annotated[
        Path | None,
        typer.Option(
            help="JSON of yes/no questions and of questions with people's answers: how many are answered rightly, with "
            "their own photos and with others'."
        ),
    ] = None,
    question_root: Annotated[
        Path | None, typer.Option(help="Folder of the questions' photos. Default: --image-root, or the file's own.")
    ] = None,
    out: Annotated[Path | None, local_output("JSON file for what --layers and --replace find of each image.")] = None,
    save_figures: Annotated[
        Path | None,
        local_output("Folder for figures, PDF and PNG: words on patches (--labels), tokens by layer (--layers)."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 8,
    bad_rows: Annotated[
        Literal["stop", "leave_out"],
        typer.Option(help="Rows that cannot be trained, or whose image is missing: name them all, or leave them out."),
    ] = "stop",
    device: Device = "auto",
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print JSON: the metrics by name, and `layers`, `lens`, `replace`, `figures` if asked for."
        ),
    ] = False,
) -> None:
    """Measure a model: the language loss, and where its visual tokens lie among the LLM's words.

    --layers and --replace are the analyses of BASIC's section 3 (Fig. 2 and 3).

    Example: sea-pipeline evaluate runs/train/x/model --data photos.json --labels runs/labels/mine
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.tables import training as training_tables
    from trainer.evaluation.run import EvaluateSettings, evaluate_model

    settings = EvaluateSettings(
        model=model, data=data, labels=labels, image_root=image_root, template=template, transfer=transfer,
        batch_size=batch_size, device=device, layers=layers, lens=lens, lens_data=lens_data, replace=replace,
        limit_images=limit_images, new_tokens=new_tokens, bad_rows=bad_rows, questions=questions,
        question_root=question_root, out=out, save_figures=save_figures,
    )  # fmt: skip
    found = evaluate_model(settings, reporter=terminal.Terminal())
    if as_json:
        print_json(found)
        return
    training_tables.metrics_table({str(model): training_tables.plain_metrics(found)})
    if layers:
        training_tables.layers_table(found["layers"])
    if lens:
        training_tables.lens_table(found["lens"])
    if replace:
        training_tables.replace_tables(found["replace"])
    if out:
        terminal.output.print(f"\nWhat was found of each image is in {out}")
    if save_figures:
        terminal.output.print(f"\n{len(found['figures'])} figures are in {save_figures}")

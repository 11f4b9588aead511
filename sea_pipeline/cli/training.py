"""The commands that make models, train them and measure them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sea_pipeline.cli import Device, completion, local_output, print_json
from sea_pipeline.cli.command import command


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
    from sea_pipeline import console
    from trainer.init import init_model
    from trainer.load import open_model_folder

    with console.busy(f"making {out}"):
        init_model(vision, llm, out, projector=projector, feature_layer=feature_layer, seed=seed, dtype=dtype)
    made = open_model_folder(out)
    if as_json:
        print_json({"folder": str(out), "grid": made.grid, "vocabulary": made.vocabulary})
        return
    rows, columns = made.grid
    console.output.print(f"{out}: {rows} x {columns} visual tokens an image, {made.vocabulary:,} tokens of the LLM")


@command
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's file, or a name that `recipes` lists. Default: demo, on sample photos.",
            show_default=False,
            autocompletion=completion.recipes,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe, such as loss.sea.weight=10.")
    ] = None,
    out: Annotated[
        Path | None, local_output("The run's folder. Default: one below runs/train, named by the settings.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="There must be a run to go on with; without it one is begun if needed.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print JSON: `runs`, one a stage, each with `stage`, `folder`, `model`, `summary`."
        ),
    ] = False,
) -> None:
    """Train a model as a recipe says. A run that was stopped goes on from its newest checkpoint.

    Example: sea-pipeline train demo --set loss.sea.weight=auto
    """
    from trainer.paper_rows import named_recipes

    recipes = named_recipes(recipe or "demo", overrides or [])
    from sea_pipeline import console_training  # not before: a mistake in a recipe is told at once
    from trainer.stages import train_stages

    runs = train_stages(recipes, out, resume=resume, told=console_training.told())
    if as_json:
        print_json({"runs": [{"stage": stage, **run.to_json()} for stage, run in runs.items()]})
        return
    for name, run in runs.items():
        console_training.run_table(run, name)


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
    from sea_pipeline import console, console_contextual, console_training
    from trainer.evaluate_run import EvaluateSettings, evaluate_model

    settings = EvaluateSettings(
        model=model, data=data, labels=labels, image_root=image_root, template=template, transfer=transfer,
        batch_size=batch_size, device=device, layers=layers, lens=lens, lens_data=lens_data, replace=replace,
        limit_images=limit_images, new_tokens=new_tokens, bad_rows=bad_rows, questions=questions,
        question_root=question_root, out=out, save_figures=save_figures,
    )  # fmt: skip
    found = evaluate_model(settings, progress=console.progress)
    if as_json:
        print_json(found)
        return
    console_training.metrics_table({str(model): console_training.plain_metrics(found)})
    if layers:
        console_training.layers_table(found["layers"])
    if lens:
        console_contextual.lens_table(found["lens"])
    if replace:
        console_training.replace_tables(found["replace"])
    if out:
        console.output.print(f"\nWhat was found of each image is in {out}")
    if save_figures:
        console.output.print(f"\n{len(found['figures'])} figures are in {save_figures}")

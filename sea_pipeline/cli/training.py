"""The commands that make models, train them and measure them."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from sea_pipeline.cli import app


@app.command()
def init(
    vision: Annotated[
        str, typer.Option(help="packaged, s2:SPEC, or a folder or hub name of a CLIP, SigLIP or DINOv2.")
    ],
    llm: Annotated[str, typer.Option(help="packaged, a .gguf file, or a folder or hub name of a causal LM.")],
    out: Annotated[Path, typer.Option(help="The new model folder.")],
    projector: Annotated[
        Literal["mlp2x_gelu", "linear"], typer.Option(help="LLaVA-1.5's two layers, or one.")
    ] = "mlp2x_gelu",
    feature_layer: Annotated[
        int | None, typer.Option(help="Which hidden state of the tower. Default: -2, or -1 for packaged and s2.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the projector's weights.")] = 0,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of all weights.")] = "float32",
) -> None:
    """Make a LLaVA model folder of a vision tower and an LLM, with a new projector between them.

    Example: sea-pipeline init --vision packaged --llm packaged --out runs/models/mine
    """
    from sea_pipeline import console
    from trainer.init import init_model
    from trainer.load import open_model_folder

    init_model(vision, llm, out, projector=projector, feature_layer=feature_layer, seed=seed, dtype=dtype)
    made = open_model_folder(out)
    rows, columns = made.grid
    console.output.print(f"{out}: {rows} x {columns} visual tokens an image, {made.vocabulary:,} tokens of the LLM")


@app.command()
def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe. Default: the demo's, on the sample photos.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe, such as loss.sea.weight=10.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder. Default: one below runs/train, named by the settings.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="There must be a run to go on with; without it one is begun if needed.")
    ] = False,
) -> None:
    """Train a model as a recipe says. A run that was stopped goes on from its newest checkpoint.

    Example: sea-pipeline train jobs/demo.yaml --set loss.sea.weight=auto
    """
    from sea_pipeline import console_training
    from trainer.recipe_file import builtin_recipe, read_recipes
    from trainer.stages import train_stages

    recipes = read_recipes(recipe or builtin_recipe("demo"), overrides or [])
    for name, run in train_stages(recipes, out, resume=resume, told=console_training.told()).items():
        console_training.run_table(run, name)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A LLaVA folder.", show_default=False)],
    data: Annotated[str, typer.Option(help="A LLaVA .json or .jsonl file, or `samples`.")],
    labels: Annotated[
        Path | None, typer.Option(help="Labels of the images; without them only lm_loss and tacs are measured.")
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
    limit_images: Annotated[
        int | None, typer.Option(min=1, help="Images for --layers (default: all) and --replace (default: 8).")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a description at most.")] = 48,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for what --layers and --replace find of each image.")
    ] = None,
    save_figures: Annotated[
        Path | None,
        typer.Option(help="Folder for figures, PDF and PNG: words on patches (--labels), tokens by layer (--layers)."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model: the language loss, and where its visual tokens lie among the LLM's words.

    --layers and --replace are the analyses of BASIC's section 3 (Fig. 2 and 3).

    Example: sea-pipeline evaluate runs/train/x/model --data photos.json --labels runs/labels/mine
    """
    from sea_pipeline import console, console_training
    from trainer.evaluate_run import EvaluateSettings, evaluate_model

    settings = EvaluateSettings(
        model=model, data=data, labels=labels, image_root=image_root, template=template, transfer=transfer,
        batch_size=batch_size, device=device, layers=layers, replace=replace, limit_images=limit_images,
        new_tokens=new_tokens, out=out, save_figures=save_figures,
    )  # fmt: skip
    found = evaluate_model(settings, progress=console.progress)
    if as_json:
        print(json.dumps(found))
        return
    console_training.metrics_table({str(model): console_training.plain_metrics(found)})
    if layers:
        console_training.layers_table(found["layers"])
    if replace:
        console_training.replace_tables(found["replace"])
    if out:
        console.output.print(f"\nWhat was found of each image is in {out}")
    if save_figures:
        console.output.print(f"\n{len(found['figures'])} figures are in {save_figures}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/demo"),
) -> None:
    """Label the sample photos with the packaged models, train on them without SEA and with it, and show all of it."""
    from sea_pipeline import analysis, console, console_training, open_labels
    from sea_pipeline.cli.report import make_report
    from sea_pipeline.label_run import LabelSettings, label_images
    from trainer.recipe_file import builtin_recipe, read_recipes
    from trainer.stages import train_stages

    done = label_images(LabelSettings(out=out / "labels"), progress=console.progress)
    console.stage_table(done, "labels", "labelled")
    store = open_labels(out / "labels")
    console.statistics_tables(analysis.statistics(store), store.words)

    compared: dict[str, dict[str, float]] = {}
    last: dict[str, Path] = {}
    for title, name in (("without SEA", "demo-baseline"), ("with SEA", "demo")):
        recipes = read_recipes(builtin_recipe(name), [f"labels.path={out / 'labels'}"])
        runs = train_stages(recipes, out / name, told=console_training.told())
        compared |= {} if compared else {"start": next(iter(runs.values())).summary["start"]}
        compared[title] = list(runs.values())[-1].summary["end"]
        last[title] = list(runs.values())[-1].out
    console.output.print("\nOn the photos they were trained on (eleven are too few to hold any out):")
    console_training.metrics_table(compared)
    console.output.print(f"The models are in {out / 'demo'} and {out / 'demo-baseline'}.")
    make_report([out / "labels", *last.values()], out / "report.html", names=list(last), images=4)

"""The command that says which encoder, path and sign to label with."""

from pathlib import Path
from typing import Annotated

import typer

from sea_pipeline.cli import Device, Precision, Template, TopN, WordListName, completion, print_json
from sea_pipeline.cli.command import command


@command
def probe(
    data: Annotated[Path, typer.Option(help="A LLaVA .json or .jsonl file with captions.")],
    image_root: Annotated[
        str | None, typer.Option(help="Folder or URL that the paths in the data start at. Default: the data's own.")
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="As for label; again for another one. Without #PATH all paths. Default: packaged.",
            autocompletion=completion.encoders,
        ),
    ] = None,
    wordlist: WordListName = "2of12",
    top_n: TopN = 10,
    limit: Annotated[int, typer.Option(help="Captioned images at most.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the choice of images and of the intervals.")] = 0,
    precision: Precision = "float32",
    template: Template = "bare",
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure on captioned images which encoder, path and sign gives labels that hold the captions' words.

    hit: the share of a caption's words that are a label of some patch of its image. chance: of images whose captions
    lack the word. lift: their difference, with its 95 % interval over images.

    Example: sea-pipeline probe --data photos.json --encoder open_clip:ViT-L-14-336-quickgelu/openai
    """
    from sea_pipeline import console
    from sea_pipeline.console_probe import probe_tables
    from sea_pipeline.probe_run import ProbeSettings, probe_encoders

    settings = ProbeSettings.of(
        data=data, image_root=image_root, encoder=tuple(encoder or ("packaged",)), wordlist=wordlist, top_n=top_n,
        limit=limit, seed=seed, precision=precision, template=template, device=device,
    )  # fmt: skip
    findings = probe_encoders(settings, console.progress)
    if as_json:
        print_json(findings.to_json())
    else:
        probe_tables(findings)

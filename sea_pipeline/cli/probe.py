"""The command that says which encoder, path and sign to label with, and whether BASIC can work on an LLM."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.options import Device, Precision, Template, TopN, WordListName
from sea_pipeline.core.errors import UserError


@command
def probe(
    data: Annotated[Path | None, typer.Option(help="A LLaVA .json or .jsonl file with captions.")] = None,
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
    llm: Annotated[
        str | None,
        typer.Option(
            help="Probe an LLM instead: a LLaVA folder, or an LLM as init takes it, such as packaged.",
            autocompletion=completion.models,
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="With --llm: a text file. Default: plain English of ours.")] = None,
    layers: Annotated[
        int | None, typer.Option(help="With --llm: k of BASIC's Eq. 4. Default: half of the LLM's layers.")
    ] = None,
    layer_weights: Annotated[
        Literal["inc", "const", "dec"], typer.Option(help="With --llm: w_i of Eq. 4, as for teacher.")
    ] = "inc",
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure on captioned images which encoder, path and sign gives labels that hold the captions' words; or an LLM.

    hit: the share of a caption's words that are a label of some patch of its image. chance: of images whose captions
    lack the word. lift: their difference, with its 95 % interval over images. Before them it says how many of the
    captions' words the word list has: as they stand, only in another form (dog for dogs, play for playing), or not.

    With --llm FOLDER: whether BASIC can lead to words on that LLM. Text goes through its layers, and what they make of
    each token is compared with the token's own embedding: BASIC takes for granted that they are near.

    Example: sea-pipeline probe --data photos.json --encoder open_clip:ViT-L-14-336-quickgelu/openai
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.tables.probe import probe_tables
    from sea_pipeline.labels.sign_probe import ProbeSettings, probe_encoders

    if llm is not None:
        of_images = {"data": data, "image_root": image_root, "encoder": encoder, "wordlist": wordlist, "top_n": top_n}
        of_images |= {"limit": limit, "seed": seed, "precision": precision, "template": template}
        _refuse_others(of_images, "leave it out with --llm, which reads text")
        _probe_llm(
            {"llm": llm, "text": text, "layers": layers, "layer_weights": layer_weights, "device": device}, as_json
        )
        return
    _refuse_others({"text": text, "layers": layers, "layer_weights": layer_weights}, "is for --llm alone; leave it out")
    if data is None:
        raise UserError("probe: expected --data CAPTIONS.json, or --llm FOLDER; see --help")
    settings = ProbeSettings.of(
        data=data, image_root=image_root, encoder=tuple(encoder or ("packaged",)), wordlist=wordlist, top_n=top_n,
        limit=limit, seed=seed, precision=precision, template=template, device=device,
    )  # fmt: skip
    findings = probe_encoders(settings, terminal.Terminal())
    if as_json:
        print_json(findings.to_json())
    else:
        probe_tables(findings)


def _refuse_others(options: Mapping[str, object], reason: str) -> None:
    """Refuses options that would not be heeded: those that are not as the command has them by itself."""
    default = inspect.signature(probe).parameters
    if given := [name for name, value in options.items() if value != default[name].default]:
        raise UserError(f"{', '.join('--' + name.replace('_', '-') for name in given)}: {reason}")


def _probe_llm(asked: Mapping[str, object], as_json: bool) -> None:
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.tables.probe import llm_tables
    from trainer.evaluation.llm_probe import LlmProbeSettings, probe_llm

    found = probe_llm(LlmProbeSettings.of(**asked), terminal.Terminal()).to_json()
    if as_json:
        print_json(found)
    else:
        llm_tables(found)

"""The command that says what labelling many images would take."""

from typing import Annotated

import typer

from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.options import Device, Encoder, Precision, Search, ShardSize, Template, TopN, WordListName


@command
def plan(
    images: Annotated[int, typer.Option(min=1, help="How many images there are to label.")],
    sample: Annotated[
        str | None,
        typer.Option(help="What to measure on, as --images of label: photos like yours. Default: sample photos."),
    ] = None,
    image_root: Annotated[
        str | None, typer.Option(help="Where paths in a list start. Default: the list's own.")
    ] = None,
    measure: Annotated[int, typer.Option(help="Label so many images here, or more where there are many cores.")] = 64,
    workers: Annotated[int, typer.Option(help="The most workers to forecast for.")] = 64,
    price: Annotated[float | None, typer.Option(help="What a worker costs an hour, in any currency.")] = None,
    wordlist: WordListName = "2of12",
    encoder: Encoder = "packaged",
    precision: Precision = "float32",
    template: Template = "bare",
    top_n: TopN = 10,
    device: Device = "auto",
    search: Search = "auto",
    shard_size: ShardSize = 2048,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON: `images_per_second`, `seconds_per_image` by part, `start_seconds`, `words_seconds`, "
            "`bytes`, `memory_bytes`, `shards`, `shares` (`workers`, `hours`, `cost`), …",
        ),
    ] = False,
) -> None:
    """Label a few images here, and say what many would take: hours and cost for 1 to N workers, disk, memory.

    A worker is a process like this one: the same device, as many cores to itself. Nothing is kept but embedded words.

    Example: sea-pipeline plan --images 558128 --sample photos --encoder open_clip:ViT-L-14-336-quickgelu/openai
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.tables.labels import forecast_tables
    from sea_pipeline.labels.forecast import ForecastSettings, forecast

    settings = ForecastSettings.of(
        planned=images, images=sample, image_root=image_root, measure=measure, workers=workers, price=price,
        wordlist=wordlist, encoder=encoder, precision=precision, template=template, top_n=top_n, device=device,
        search=search, shard_size=shard_size,
    )  # fmt: skip
    found = forecast(settings, terminal.Terminal())
    if as_json:
        print_json(found.to_json())
    else:
        forecast_tables(found)

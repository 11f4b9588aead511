"""The command that makes labels."""

from typing import Annotated

import typer

from sea_pipeline.cli.command import command
from sea_pipeline.cli.options import (
    Cluster,
    Dashboard,
    Device,
    Encoder,
    Extend,
    MaxBad,
    Precision,
    RetryBad,
    Scheduler,
    Search,
    ShardRange,
    ShardSize,
    ShardTimeout,
    StageJson,
    Template,
    TopN,
    WordListName,
    Workers,
    tell,
)


@command
def label(
    images: Annotated[
        str | None,
        typer.Option(
            help="A folder of images; LLaVA's .json or .jsonl; a .csv, .tsv, .txt or .parquet list of paths; .parquet "
            "files or .tar files with images (one, a folder, *, {000..009}); a URL of any of these (s3://…); a "
            "datasets name or folder as hf:NAME[:SPLIT]. Default: sample photos of two packages."
        ),
    ] = None,
    image_root: Annotated[
        str | None, typer.Option(help="Folder or URL that paths in a list are relative to. Default: the list's own.")
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            help="The column that holds the ids. Default: the first of image_id, id, key, __key__, file_name whose "
            "values all differ, else the image's path, else the row number."
        ),
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read hf:NAME forward, in its own order; nothing is downloaded first.")
    ] = False,
    wordlist: WordListName = "2of12",
    encoder: Encoder = "packaged",
    precision: Precision = "float32",
    template: Template = "bare",
    top_n: TopN = 10,
    out: Annotated[
        str | None,
        typer.Option(help="Output folder, or a URL (s3://…). Default: one below runs/labels, named by the settings."),
    ] = None,
    crops: Annotated[
        int, typer.Option(help="Also label so many random square crops of each image, for training on crops.")
    ] = 0,
    limit: Annotated[int | None, typer.Option(help="Label only the first N images, in the order of their ids.")] = None,
    device: Device = "auto",
    search: Search = "auto",
    shard_size: ShardSize = 2048,
    extend: Extend = False,
    max_bad: MaxBad = 0.01,
    retry_bad: RetryBad = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe",
            help="In a new folder, warn if 32 captioned images say that the encoder's other sign is better. The "
            "labels are the same; takes as long as labelling some forty images.",
        ),
    ] = True,
    workers: Workers = None,
    scheduler: Scheduler = None,
    cluster: Cluster = None,
    shard_range: ShardRange = None,
    shard_timeout: ShardTimeout = None,
    dashboard: Dashboard = True,
    as_json: StageJson = False,
) -> None:
    """Label every patch of every image with its n most similar words.

    Finished shards are kept: after a kill, run the same command again.

    Example: sea-pipeline label --images photos.json --image-root photos --wordlist 2of12
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.execution.cluster_settings import Crew
    from sea_pipeline.labels.run import LabelSettings, label_images

    crew = Crew.of(
        workers=workers, scheduler=scheduler, cluster=cluster, shard_range=shard_range, shard_timeout=shard_timeout,
        dashboard=dashboard,
    )  # fmt: skip
    settings = LabelSettings.of(
        images=images, image_root=image_root, id_column=id_column, streaming=streaming, wordlist=wordlist,
        encoder=encoder, precision=precision,
        template=template, top_n=top_n, crops=crops, out=out, limit=limit, device=device, search=search,
        shard_size=shard_size, max_bad=max_bad, retry_bad=retry_bad, extend=extend, probe=probe, crew=crew,
    )  # fmt: skip
    done = label_images(settings, terminal.Terminal())
    tell(done, "labels", "labelled", as_json=as_json)

"""The command that stores BASIC's supervision."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.command import command
from sea_pipeline.cli.options import (
    Cluster,
    Dashboard,
    Device,
    Extend,
    MaxBad,
    RetryBad,
    Scheduler,
    ShardRange,
    ShardSize,
    ShardTimeout,
    StageJson,
    Workers,
    tell,
)


@command
def teacher(
    model: Annotated[
        Path,
        typer.Option(help="A LLaVA folder: its LLM's layers are the teacher.", autocompletion=completion.models),
    ],
    data: Annotated[str, typer.Option(help="A LLaVA .json or .jsonl file, or `samples`.")],
    out: Annotated[
        str | None,
        typer.Option(help="Output folder, or a URL (s3://…). Default: one below runs/targets, named by the settings."),
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that the paths in the data are relative to. Default: the data's own.")
    ] = None,
    codec: Annotated[
        Literal["float16", "int8", "pq64"],
        typer.Option(help="Bytes of a vector of width d: 2 d, d + 2, or 64 (needs FAISS; for a first look)."),
    ] = "int8",
    template: Annotated[
        Literal["plain", "vicuna_v1", "own"], typer.Option(help="How conversations are written; own: the LLM's way.")
    ] = "own",
    max_length: Annotated[int, typer.Option(help="Tokens of a sample at most, the image's included.")] = 2048,
    image_aspect_ratio: Annotated[
        Literal["square", "pad"] | None,
        typer.Option(help="As data.image_aspect_ratio of the recipe that reads the targets. Default: the model's own."),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="k of Eq. 4 and 5. Default: half of the LLM's layers.")] = None,
    layer_weights: Annotated[
        Literal["inc", "const", "dec"], typer.Option(help="w_i of Eq. 4: growing as i^2, equal, or falling.")
    ] = "inc",
    degree: Annotated[
        Literal["auto", "equal"], typer.Option(help="a_i of Eq. 5: by the text's attention, or all the same.")
    ] = "auto",
    text: Annotated[
        Literal["all", "prompt"],
        typer.Option(help="Whose attention: all text behind the image, or the untrained."),
    ] = "all",
    normalise: Annotated[
        Literal["none", "unit"], typer.Option(help="unit: every layer's tokens get the same length before the sum.")
    ] = "none",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the model's weights.")] = "float32",
    limit: Annotated[int | None, typer.Option(help="Only the first N images, in the order of their ids.")] = None,
    bad_rows: Annotated[
        Literal["stop", "leave_out"],
        typer.Option(help="Rows that cannot be trained, or whose image is missing: name them all, or leave them out."),
    ] = "stop",
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 8,
    shard_size: ShardSize = 256,
    extend: Extend = False,
    max_bad: MaxBad = 0.01,
    retry_bad: RetryBad = False,
    yes: Annotated[bool, typer.Option("--yes", help="Write more than 100 GB without asking.")] = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    cluster: Cluster = None,
    shard_range: ShardRange = None,
    shard_timeout: ShardTimeout = None,
    dashboard: Dashboard = True,
    as_json: StageJson = False,
) -> None:
    """Store what BASIC takes for its teacher, for every image: the LLM's refined visual embeddings and attention.

    Finished shards are kept: after a kill, run the same command again. `teacher: FOLDER` in a recipe reads them.

    Example: sea-pipeline teacher --model runs/train/x/model --data photos.json --image-root photos
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.execution.cluster_settings import Crew
    from trainer.teacher.run import TeachSettings, teach_images

    crew = Crew.of(
        workers=workers, scheduler=scheduler, cluster=cluster, shard_range=shard_range, shard_timeout=shard_timeout,
        dashboard=dashboard,
    )  # fmt: skip
    basic = {
        "layers": layers, "layer_weights": layer_weights, "degree": degree, "text": text, "normalise": normalise
    }  # fmt: skip
    settings = TeachSettings.of(
        model=model, data=data, out=out, image_root=image_root, codec=codec, template=template, dtype=dtype,
        basic=basic, bad_rows=bad_rows, max_length=max_length, limit=limit, device=device, batch_size=batch_size,
        shard_size=shard_size, image_aspect_ratio=image_aspect_ratio, max_bad=max_bad, retry_bad=retry_bad,
        extend=extend, yes=yes, crew=crew,
    )  # fmt: skip
    done = teach_images(settings, terminal.Terminal())
    tell(done, "targets", "taught", as_json=as_json)

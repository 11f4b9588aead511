"""The commands that make labels and look at them."""

from pathlib import Path
from typing import Annotated

import typer

from sea_pipeline.cli import (
    Device,
    Encoder,
    Precision,
    Search,
    Template,
    TopN,
    WordListName,
    completion,
    local_output,
    print_json,
)
from sea_pipeline.cli.command import command
from sea_pipeline.cli.crew import (
    Cluster,
    Dashboard,
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
from sea_pipeline.core.errors import UserError

LabelsFolder = Annotated[
    str,
    typer.Argument(
        help="A folder that `sea-pipeline label` wrote.", show_default=False, autocompletion=completion.labels
    ),
]
OutputFolder = Annotated[
    str,
    typer.Argument(help="An output folder, finished or not.", show_default=False, autocompletion=completion.outputs),
]


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
    from sea_pipeline import console
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
    done = label_images(
        settings,
        begun=lambda ledger: console.say(f"labels go to {ledger.root}"),
        warn=console.warning,
        say=console.say,
        progress=console.progress,
    )
    tell(done, "labels", "labelled", as_json=as_json)


@command
def inspect(
    labels: LabelsFolder,
    image: Annotated[str | None, typer.Argument(help="An image id, for its own words.", show_default=False)] = None,
    save: Annotated[
        Path | None, local_output("Also draw Figure 6, or the image with its words: a .png, .pdf or .svg file.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON: `images`, `patches`, `words_used`, `most_frequent`, …; of an image `grid`, and the "
            "`words` and `scores` of every patch.",
        ),
    ] = False,
) -> None:
    """Show what a run's labels are like: SEA's Figure 6, the use of the list, the most frequent words.

    Example: sea-pipeline inspect runs/labels/x chelsea.png --save chelsea.pdf
    """
    from sea_pipeline import console, open_labels
    from sea_pipeline.labels import statistics
    from sea_pipeline.report import figures

    if save is not None:
        figures.check_figure(save)

    store = open_labels(labels, verify=image is None)  # one image's own pages have checksums
    if image is not None:
        for bad in store.quarantine() if image not in store else ():
            if bad["image_id"] == image:
                raise UserError(f"{labels}: {image!r} was not labelled: {bad['stage']}: {bad['message']}")
        try:
            found = store[image]
        except KeyError as missing:
            raise UserError(f"{labels}: {missing.args[0]}") from None
        if save is not None:
            figure = figures.labels_figure(figures.photo_of(store, image), found, store.words)
            if lacking := figures.save_figure(figure, save):
                console.warning(f"{save}: the font has no {' '.join(lacking)}; they are boxes there")
        if as_json:
            print_json(statistics.labels_to_json(image, found, store.words))
        else:
            console.image_tables(image, found, store.words)
        return
    with console.progress("counting", len(store), 0) as advance:
        stats = statistics.statistics(store, advance)
    if save is not None:
        figures.save_figure(figures.statistics_figure(stats), save)
    if as_json:
        print_json(stats.to_json(store.words))
        return
    console.statistics_tables(stats, store.words)


@command
def status(
    folder: OutputFolder,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON: `kind`, `finished`, `shards`, `shards_done`, `images`, `images_done`, `images_bad`, "
            "`reasons` with counts, `bytes`, `last_finished`, `failing`, `images_per_second`, `seconds_left`.",
        ),
    ] = False,
) -> None:
    """Show what is done in an output folder, finished or not, and which images are bad.

    Example: sea-pipeline status runs/labels/x
    """
    from sea_pipeline import console
    from sea_pipeline.output import status as _status
    from sea_pipeline.output.ledger import Ledger
    from sea_pipeline.output.verify import refuse_damage
    from sea_pipeline.storage.paths import place

    ledger = Ledger.open(place(folder))
    refuse_damage(ledger)
    if as_json:
        print_json(_status.status_to_json(ledger))
    else:
        console.status_tables(ledger)


@command
def verify(
    folder: OutputFolder,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print JSON: `folder`, `files`, `bytes`, `finished`, `shards_missing`, `problems`."
        ),
    ] = False,
) -> None:
    """Hash every file again and compare; exit 1 and the file's name where one differs.

    Example: sea-pipeline verify runs/labels/x
    """
    from rich.filesize import decimal

    from sea_pipeline import console
    from sea_pipeline.output.ledger import Ledger
    from sea_pipeline.output.verify import check_files
    from sea_pipeline.storage.paths import place

    ledger = Ledger.open(place(folder))
    with console.progress("verifying", ledger.dataset.shards, 0) as advance:
        checked = check_files(ledger, advance)
    size, missing = sum(file.bytes for file in checked.files), len(checked.missing)
    if as_json:
        found = {"folder": str(folder), "files": len(checked.files), "bytes": size, "finished": checked.finished}
        print_json(found | {"shards_missing": missing, "problems": checked.problems})
    for problem in checked.problems:
        console.error(problem)
    if checked.problems:
        raise typer.Exit(1)
    if as_json:
        return
    state = f"; {missing} of {ledger.dataset.shards} shards are not done yet" if missing else ""
    if not (missing or checked.finished):
        state = f"; not finished yet: run {ledger.command} again"
    console.output.print(f"{folder}: {len(checked.files)} files, {decimal(size)}, as written{state}")

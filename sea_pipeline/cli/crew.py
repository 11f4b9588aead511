"""What the commands that work shard by shard share: options for which shards and who does them, and how they end."""

from typing import TYPE_CHECKING, Annotated

import typer

from sea_pipeline.cli import FAILED_SHARDS, print_json

if TYPE_CHECKING:  # it brings torch
    from sea_pipeline.execution.dispatch import StageRun

ShardSize = Annotated[int, typer.Option(help="Images per shard; a kill loses one shard's work at most.")]
Extend = Annotated[
    bool, typer.Option("--extend", help="Add images that are new to a folder that was begun without them.")
]
MaxBad = Annotated[
    float,
    typer.Option(
        help="Stop when more than this share of all images is bad; 0 allows none, any other value at least one."
    ),
]
RetryBad = Annotated[
    bool, typer.Option("--retry-bad", help="Read images that were bad again; in a finished folder, too.")
]
StageJson = Annotated[
    bool, typer.Option("--json", help="Print JSON: `folder`, what `status --json` prints, and `run`.")
]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes of this machine, one for each GPU where there are GPUs (extra `dask`)."),
]
Scheduler = Annotated[
    str | None, typer.Option(help="Have the workers of a dask scheduler do it: tcp://HOST:PORT, or its file.")
]
Cluster = Annotated[
    str | None,
    typer.Option(help="Start the workers that a YAML file describes: local, cuda, ssh, slurm or a file of yours."),
]
ShardRange = Annotated[
    str | None,
    typer.Option(
        help="I/N: only the I-th of N parts of the shards, for job arrays; the last one to be done finishes the folder."
    ),
]
ShardTimeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds: a worker that takes longer for a shard is started again, and the shard tried once more."
    ),
]
Dashboard = Annotated[
    bool, typer.Option("--dashboard/--no-dashboard", help="Serve dask's dashboard of the workers on this machine.")
]


def tell(done: "StageRun", kind: str, done_to: str, *, as_json: bool) -> None:
    """Prints what was done, as `console.stage_table` or as JSON; exit 3 if shards failed."""
    from sea_pipeline import console

    if as_json:
        print_json(done.to_json())
    else:
        console.stage_table(done, kind, done_to)
    if done.report.failed:
        raise typer.Exit(FAILED_SHARDS)

"""Options of the commands that work shard by shard: which shards, and who does them."""

from typing import Annotated

import typer

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

"""Options that several commands share, and how the commands that work shard by shard end."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import FAILED_SHARDS, print_json

if TYPE_CHECKING:  # it brings torch
    from sea_pipeline.execution.dispatch import StageRun

# Options of the commands that embed words.
Encoder = Annotated[
    str,
    typer.Option(
        help="packaged (Python packages; nothing is downloaded); or open_clip:ARCH/PRETRAINED, open_clip:FOLDER or "
        "open_clip:hf-hub:ORG/NAME, and #final, #value, #vv or #pool behind it. s2: before any: at three scales.",
        autocompletion=completion.encoders,
    ),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the image tower; words are float32 always.")
]
Template = Annotated[
    Literal["bare", "photo", "ensemble"],
    typer.Option(help='Embed words bare, as "a photo of a {}.", or as the mean of 80 such sentences.'),
]
WordListName = Annotated[
    str,
    typer.Option(
        help="2of12, a UTF-8 file with one word per line, or mine:CAPTIONS.json.", autocompletion=completion.wordlists
    ),
]
TopN = Annotated[int, typer.Option(help="At most this many labels per patch.")]
Search = Annotated[
    Literal["auto", "int8", "faiss", "torch"],
    typer.Option(
        help="What proposes words; the labels are the same. int8: 8 bits with a bound on the error; faiss: FAISS's "
        "flat index; torch: float32; auto: on a CPU the fastest of them there, by a trial."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", autocompletion=completion.devices)]


def local_output(teaches: str) -> Any:  # noqa: ANN401 - typer's
    """The option of an output that is no folder of shards: a `Path` made of a URL would be a folder `s3:`."""
    return typer.Option(parser=_of_this_machine, metavar="<path>", help=teaches)


def _of_this_machine(text: str | Path) -> Path:
    from sea_pipeline.storage.paths import is_url

    if is_url(str(text)):
        raise typer.BadParameter(
            f"expected a path of this machine, found {text}: only label, teacher, merge and select write to stores"
        )
    return Path(text)


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
    """Prints what was done, as a table or as JSON; exit 3 if shards failed."""
    from sea_pipeline.cli.tables import labels as label_tables

    if as_json:
        print_json(done.to_json())
    else:
        label_tables.stage_table(done, kind, done_to)
    if done.report.failed:
        raise typer.Exit(FAILED_SHARDS)

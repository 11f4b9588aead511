"""Define options and arguments of commands without settings, and report what a sharded command did."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import FAILED_SHARDS, print_json

if TYPE_CHECKING:  # its import loads torch
    from sea_pipeline.execution.dispatch import StageRun


def json_option(teaches: str) -> Any:  # noqa: ANN401 - typer's
    """Make the option with which a command prints JSON."""
    return typer.Option("--json", help=teaches)


HubDataset = Annotated[
    str, typer.Argument(help="The dataset on the Hugging Face hub, as OWNER/NAME.", show_default=False)
]
LabelsFolder = Annotated[
    str,
    typer.Argument(
        help="A folder of labels that `sea-pipeline label` wrote.", show_default=False, autocompletion=completion.labels
    ),
]
OutputFolder = Annotated[
    str,
    typer.Argument(
        help="A folder of labels or targets, finished or not.", show_default=False, autocompletion=completion.outputs
    ),
]
StageJson = Annotated[bool, json_option("Print JSON: `folder`, the keys of `status --json`, and `run`.")]

JoinedOut = Annotated[str, typer.Option(help="The new folder to write, or its URL (s3://…).", show_default=False)]
JoinedJson = Annotated[
    bool,
    json_option("Print JSON: `folder`, `images`, `bad`, `shards`, `linked` (shards that take no space), `rewritten`."),
]


def local_output(teaches: str, *spelled: str) -> Any:  # noqa: ANN401 - typer's
    """Make the option of an output on this machine.

    A `Path` made from a URL would be a folder `s3:`, so URLs are refused.
    """
    return typer.Option(*spelled, parser=_of_this_machine, metavar="<path>", help=teaches)


def _of_this_machine(text: str | Path) -> Path:
    from sea_pipeline.storage.paths import is_url

    if is_url(str(text)):
        raise typer.BadParameter(
            f"expected a path of this machine, found {text}: only label, teacher, merge and select write to stores"
        )
    return Path(text)


def tell(done: "StageRun", kind: str, done_to: str, *, as_json: bool) -> None:
    """Print what was done, as a table or as JSON, and exit with 3 if shards failed.

    Args:
        done: the run.
        kind: the name of what was made, such as `labels`.
        done_to: the word for what was done to images, such as `labelled`.
        as_json: print JSON.
    """
    from sea_pipeline.cli.tables import labels as label_tables

    if as_json:
        print_json(done.to_json())
    else:
        label_tables.stage_table(done, kind, done_to)
    if done.report.failed:
        raise typer.Exit(FAILED_SHARDS)

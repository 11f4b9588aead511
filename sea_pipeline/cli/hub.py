"""The commands that send finished folders to the Hugging Face hub, and fetch them."""

from pathlib import Path
from typing import Annotated

import typer

from sea_pipeline.cli import completion, local_output, print_json
from sea_pipeline.cli.command import command

Dataset = Annotated[str, typer.Argument(help="OWNER/NAME, as the hub calls a dataset.", show_default=False)]


@command
def push(
    folder: Annotated[
        str,
        typer.Argument(
            help="A finished output folder of this machine.", show_default=False, autocompletion=completion.outputs
        ),
    ],
    dataset: Dataset,
    public: Annotated[
        bool, typer.Option("--public", help="A dataset that does not exist yet can be read by everybody.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON: `name`, `address`, `revision`, `files`, `bytes`, and `sent`, files not there yet.",
        ),
    ] = False,
) -> None:
    """Send finished labels or targets to a dataset of the Hugging Face hub, with a card; a new one is private.

    After a kill, run the same command again: what is there is not sent again, and the manifest comes last.

    Example: sea-pipeline push runs/labels/x OWNER/NAME
    """
    from rich.filesize import decimal

    from sea_pipeline import console
    from sea_pipeline.hub import push as hub_push

    done = hub_push.push(folder, dataset, public=public, say=console.say, progress=console.progress)
    if as_json:
        print_json(done.to_json())
        return
    sent = f"{done.sent} of {done.files} files sent" if done.sent else f"all {done.files} files were there"
    console.output.print(f"{done.address}: {sent}, {decimal(done.bytes)}, as written; revision {done.revision}")


@command
def pull(
    dataset: Dataset,
    out: Annotated[
        Path | None, local_output("The folder. Default: one of its name below runs/labels or runs/targets.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, a tag or a commit. Default: what is there now.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON: `name`, `revision`, `folder`, `files`, `bytes`, and `fetched`, files not there yet.",
        ),
    ] = False,
) -> None:
    """Fetch labels or targets that push has sent, byte for byte, and verify them.

    After a kill, run the same command again: what is there is not fetched again.

    Example: sea-pipeline pull OWNER/NAME --out runs/labels/x
    """
    from rich.filesize import decimal

    from sea_pipeline import console
    from sea_pipeline.hub import pull as hub_pull

    done = hub_pull.pull(dataset, out, revision=revision, say=console.say, progress=console.progress)
    if as_json:
        print_json(done.to_json())
        return
    fetched = f"{done.fetched} of {done.files} files fetched" if done.fetched else f"all {done.files} files were there"
    console.output.print(f"{done.folder}: {fetched}, {decimal(done.bytes)}, as written; revision {done.revision}")

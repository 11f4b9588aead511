"""The command that fetches a folder from the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.own_options import local_output

HubDataset = Annotated[str, typer.Argument(help="OWNER/NAME, as the hub calls a dataset.", show_default=False)]


@command
def pull(
    dataset: HubDataset,
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

    from sea_pipeline.cli import terminal
    from sea_pipeline.hub import pull as hub_pull

    done = hub_pull.pull(dataset, out, revision=revision, reporter=terminal.Terminal())
    if as_json:
        print_json(done.to_json())
        return
    fetched = f"{done.fetched} of {done.files} files fetched" if done.fetched else f"all {done.files} files were there"
    terminal.output.print(f"{done.folder}: {fetched}, {decimal(done.bytes)}, as written; revision {done.revision}")

"""The command that fetches a folder from the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.own_options import HubDataset, json_option, local_output


@command
def pull(
    dataset: HubDataset,
    out: Annotated[
        Path | None,
        local_output("The output folder. Default: a folder in runs/labels or runs/targets, named after the dataset."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, a tag or a commit of the dataset. Default: the newest commit.")
    ] = None,
    as_json: Annotated[
        bool,
        json_option(
            "Print JSON: `name`, `revision`, `folder`, `files`, `bytes`, and `fetched`, the files fetched now."
        ),
    ] = False,
) -> None:
    """Fetch labels or targets that push has sent, and verify them.

    It reads a dataset on the Hugging Face hub, and writes the folder that was
    pushed, byte for byte. After a kill, run the same command again: files that
    are there are not fetched again.

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

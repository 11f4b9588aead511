"""The command that sends a finished folder to the Hugging Face hub."""

from typing import Annotated

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.own_options import HubDataset, json_option


@command
def push(
    folder: Annotated[
        str,
        typer.Argument(
            help="A finished folder of labels or targets on this machine.",
            show_default=False,
            autocompletion=completion.outputs,
        ),
    ],
    dataset: HubDataset,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new dataset readable by everybody. Default: private.")
    ] = False,
    as_json: Annotated[
        bool,
        json_option("Print JSON: `name`, `address`, `revision`, `files`, `bytes`, and `sent`, the files sent now."),
    ] = False,
) -> None:
    """Send finished labels or targets to a dataset on the Hugging Face hub.

    It also writes the dataset's card. The manifest is sent last. After a kill,
    run the same command again: files that are there are not sent again.

    Example: sea-pipeline push runs/labels/x OWNER/NAME
    """
    from rich.filesize import decimal

    from sea_pipeline.cli import terminal
    from sea_pipeline.hub import push as hub_push

    done = hub_push.push(folder, dataset, public=public, reporter=terminal.Terminal())
    if as_json:
        print_json(done.to_json())
        return
    sent = f"{done.sent} of {done.files} files sent" if done.sent else f"all {done.files} files were there"
    terminal.output.print(f"{done.address}: {sent}, {decimal(done.bytes)}, as written; revision {done.revision}")

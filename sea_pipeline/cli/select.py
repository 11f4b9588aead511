"""The command that copies some images of a folder of labels into a new folder."""

from pathlib import Path
from typing import Annotated

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.own_options import JoinedJson, JoinedOut


@command
def select(
    folder: Annotated[
        str,
        typer.Argument(help="A finished folder of labels.", show_default=False, autocompletion=completion.labels),
    ],
    ids: Annotated[
        Path,
        typer.Argument(
            help="A file of image ids, one per line, or a .json file with a list of them.", show_default=False
        ),
    ],
    out: JoinedOut,
    as_json: JoinedJson = False,
) -> None:
    """Copy the labels of some images into a new folder.

    It reads a folder of labels and a file of image ids. It writes what label
    would write for these images alone. After a kill, run the same command again.

    Example: sea-pipeline select runs/labels/x ids.txt --out runs/labels/some
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.join import select as join_select

    wanted = join_select.read_ids(ids)
    done = join_select.select(folder, wanted, out, reporter=terminal.Terminal())
    if as_json:
        print_json(done.to_json())
        return
    bad = f", {done.bad:,} bad" if done.bad else ""
    terminal.output.print(f"{done.folder}: {done.images:,} images{bad} in {done.shards} shards")

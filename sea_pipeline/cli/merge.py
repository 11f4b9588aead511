"""The command that merges several folders of labels into one."""

from typing import Annotated

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.own_options import JoinedJson, JoinedOut


@command
def merge(
    folders: Annotated[
        list[str],
        typer.Argument(
            help="Finished folders of labels, two or more.", show_default=False, autocompletion=completion.labels
        ),
    ],
    out: JoinedOut,
    image_root: Annotated[
        str | None,
        typer.Option(
            help="The folder or URL that all image paths are now relative to. Default: the one that all folders have."
        ),
    ] = None,
    as_json: JoinedJson = False,
) -> None:
    """Merge several folders of labels into one.

    The folders must have the same settings and different images. On one disk,
    shards become hard links that take no space. After a kill, run the same
    command again.

    Example: sea-pipeline merge runs/labels/a runs/labels/b --out runs/labels/both
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.join import merge as join_merge

    done = join_merge.merge(folders, out, image_root=image_root, reporter=terminal.Terminal())
    if as_json:
        print_json(done.to_json())
        return
    bad = f", {done.bad:,} bad" if done.bad else ""
    terminal.output.print(
        f"{done.folder}: {done.images:,} images{bad} in {done.shards} shards; {done.linked} take no space, "
        f"{done.rewritten} were written anew"
    )

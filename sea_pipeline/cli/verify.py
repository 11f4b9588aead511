"""The command that checks the files of output folders."""

from typing import Annotated

import typer

from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.own_options import OutputFolder, json_option


@command
def verify(
    folder: OutputFolder,
    as_json: Annotated[
        bool, json_option("Print JSON: `folder`, `files`, `bytes`, `finished`, `shards_missing`, `problems`.")
    ] = False,
) -> None:
    """Check every file of an output folder against its recorded hash.

    It reads all files and writes none. If a file differs, it prints the name and
    exits with 1.

    Example: sea-pipeline verify runs/labels/x
    """
    from rich.filesize import decimal

    from sea_pipeline.cli import terminal
    from sea_pipeline.output.ledger import Ledger
    from sea_pipeline.output.verify import check_files
    from sea_pipeline.storage.paths import place

    ledger = Ledger.open(place(folder))
    with terminal.progress("verifying", ledger.dataset.shards) as advance:
        checked = check_files(ledger, advance)
    size, missing = sum(file.bytes for file in checked.files), len(checked.missing)
    if as_json:
        found = {"folder": str(folder), "files": len(checked.files), "bytes": size, "finished": checked.finished}
        print_json(found | {"shards_missing": missing, "problems": checked.problems})
    for problem in checked.problems:
        terminal.error(problem)
    if checked.problems:
        raise typer.Exit(1)
    if as_json:
        return
    state = f"; {missing} of {ledger.dataset.shards} shards are not done yet" if missing else ""
    if not (missing or checked.finished):
        state = f"; not finished yet: {ledger.finishing}"
    terminal.output.print(f"{folder}: {len(checked.files)} files, {decimal(size)}, as written{state}")

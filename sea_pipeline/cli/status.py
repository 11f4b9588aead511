"""The command that shows the progress of an output folder."""

from typing import Annotated

from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.own_options import OutputFolder, json_option


@command
def status(
    folder: OutputFolder,
    as_json: Annotated[
        bool,
        json_option(
            "Print JSON: `kind`, `finished`, `shards`, `shards_done`, `images`, `images_done`, `images_bad`, "
            "`reasons` with counts, `bytes`, `last_finished`, `failing`, `images_per_second`, `seconds_left`."
        ),
    ] = False,
) -> None:
    """Show the progress of an output folder.

    It shows which shards are done, which images are bad, and how long the rest
    takes. The folder may be in use.

    Example: sea-pipeline status runs/labels/x
    """
    from sea_pipeline.cli.tables import labels as label_tables
    from sea_pipeline.output import status as analysis
    from sea_pipeline.output.ledger import Ledger
    from sea_pipeline.output.verify import refuse_damage
    from sea_pipeline.storage.paths import place

    ledger = Ledger.open(place(folder))
    commits = refuse_damage(ledger)
    if as_json:
        print_json(analysis.status_to_json(ledger, commits))
    else:
        label_tables.status_tables(ledger, commits)

"""The command that lists the papers' rows."""

from typing import Annotated

import typer

from sea_pipeline.cli import app, print_json
from sea_pipeline.errors import UserError


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A row, for its commands and numbers. Default: all rows.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: `rows`, each with `name`, `recipe`, `overrides`, `expected`, ….")
    ] = False,
) -> None:
    """List the rows of the papers' tables that `train` takes by name, or show one: commands, numbers, hardware.

    Example: sea-pipeline recipes sea-table2-gemma-2b
    """
    from sea_pipeline import console_training
    from trainer.paper_rows import paper_rows

    rows = paper_rows()
    if name is not None and name not in rows:
        raise UserError(f"{name}: expected a row of the papers; found no such name; sea-pipeline recipes lists them")
    if as_json:
        print_json({"rows": [row._asdict() for row in rows.values() if name in (None, row.name)]})
    elif name is None:
        console_training.rows_tables(list(rows.values()))
    else:
        console_training.row_page(rows[name])

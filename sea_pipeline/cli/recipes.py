"""The command that lists what `train` takes by name."""

from typing import Annotated

import typer

from sea_pipeline.cli import completion
from sea_pipeline.cli.app import print_json
from sea_pipeline.cli.command import command
from sea_pipeline.cli.own_options import json_option
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.near_names import nearest_name


@command
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="The row of a paper's table, or the recipe of the project, to show. Default: list all.",
            show_default=False,
            autocompletion=completion.recipe_names,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        json_option(
            "Print JSON: `rows`, each with `name`, `recipe`, `overrides`, `expected`, …; and `recipes` of the "
            "project, each with `name`, `file`, `about`."
        ),
    ] = False,
) -> None:
    """List the recipes that `train` takes by name, or show one.

    The rows of the papers' tables come first. For a row it shows the commands,
    the paper's numbers and the hardware.

    Example: sea-pipeline recipes sea-table2-gemma-2b
    """
    from sea_pipeline.cli import terminal
    from sea_pipeline.cli.tables import training as training_tables
    from trainer.recipes.names import about, builtin_recipes
    from trainer.recipes.paper_rows import paper_rows

    rows, builtins = paper_rows(), builtin_recipes()
    if name is not None and name not in {*rows, *builtins}:
        file = name.endswith((".yaml", ".yml")) or "/" in name
        near = "; it takes names alone, no files" if file else nearest_name(name, [*rows, *builtins])
        raise UserError(
            f"{name}: expected a row of the papers or a recipe of the project; found no such name; "
            f"sea-pipeline recipes lists them{near}"
        )
    if as_json:
        shown = {own: file for own, file in builtins.items() if name in (None, own)}
        print_json(
            {
                "rows": [row._asdict() for row in rows.values() if name in (None, row.name)],
                "recipes": [{"name": own, "file": str(file), "about": about(file)} for own, file in shown.items()],
            }
        )
    elif name is None:
        training_tables.rows_tables(list(rows.values()))
        terminal.output.print(f"\nRecipes of the project go by name, too: {', '.join(builtins)}.")
    elif name in builtins:
        terminal.output.print(f"{builtins[name]}\n\n{about(builtins[name])}")
    else:
        training_tables.row_page(rows[name])

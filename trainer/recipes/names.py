"""Lists the names of recipes: those that come with the project, and the rows of the papers' tables.

A shell that completes a line asks for the names, so this imports no library but YAML.
"""

from pathlib import Path
from typing import Any

import yaml

from sea_pipeline.storage.paths import data_folder

PAPERS = ("sea", "basic")
"""Files of `jobs/papers`."""


def builtin_recipes() -> dict[str, Path]:
    """Return the files of the recipes that come with the project, by name."""
    return {file.stem: file for file in sorted(data_folder("jobs").glob("*.yaml"), key=lambda file: file.stem)}


def row_names() -> list[str]:
    """List the rows of both papers, in the papers' order."""
    tables = [table for paper in PAPERS for table in papers_file(paper)["tables"].items()]
    return [f"{prefix}-{suffix}" for prefix, table in tables for suffix in table["rows"]]


def recipe_names() -> list[str]:
    """List everything that `sea-pipeline train` takes by name."""
    return [*builtin_recipes(), *row_names()]


def papers_file(name: str) -> Any:  # noqa: ANN401 - YAML
    """Read a file of `jobs/papers`."""
    return yaml.safe_load((data_folder("jobs") / "papers" / f"{name}.yaml").read_text("utf-8"))


def about(recipe: Path) -> str:
    """Return a recipe's description, as lines.

    It is the comment that the file begins with.
    """
    lines = []
    for line in recipe.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)

"""Rows of a comparison: recipes with what is set over them, as files that `sea-pipeline train` takes, too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sea_pipeline.core.errors import UserError
from trainer.recipes.files import read_recipes
from trainer.recipes.names import builtin_recipes
from trainer.recipes.recipe import Recipe


class Row(NamedTuple):
    """A line of the table."""

    name: str
    title: str
    recipe: Path
    overrides: tuple[str, ...]
    """As for `--set`."""
    after: str | None = None
    """The row whose model the last stage begins with; its stages come first here, too."""


def read_rows(file: Path, chosen: Sequence[str] = ()) -> list[Row]:
    """Reads the rows of a file, by default all.

    Args:
        file: YAML: by name `recipe`, a built-in recipe or a file beside this one, `set`, a list of overrides,
            `title`, what the table calls the row, by default its name, and `after`, a row whose `set` holds here, too.
        chosen: names.

    Raises:
        UserError: a row is chosen that there is not.
    """
    try:
        content: Mapping[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file}: expected rows as YAML, such as tests/bench/captions.yaml; {error}") from error
    if unknown := [name for name in chosen if name not in content]:
        raise UserError(f"--rows {' '.join(unknown)}: expected names of {file}: {', '.join(content)}")
    builtin = builtin_recipes()
    return [
        Row(
            name,
            row.get("title", name),
            builtin.get(row["recipe"], file.parent / row["recipe"]),
            (*(content[row["after"]].get("set", ()) if "after" in row else ()), *row.get("set", ())),
            row.get("after"),
        )
        for name, row in content.items()
        if not chosen or name in chosen
    ]


def recipes_of(row: Row, common: Sequence[str], steps: int | None, folder: Path) -> dict[str, Recipe]:
    """Gives the stages of a row, which are written to `folder/NAME.yaml`.

    The last stage is called by the row's name, those before it by the recipe's or that of the row before, because
    rows share them.

    Args:
        row: of the comparison.
        common: overrides of all rows.
        steps: of each stage through the LLM; None for what the recipe says.
        folder: for the file, whose seed is this run's: `--set seed=1` gives another's.
    """
    stages = read_recipes(row.recipe, [*common, *row.overrides])
    last = list(stages)[-1]
    for stage, recipe in stages.items():
        if recipe.loss.lm:
            arguments = recipe.training_arguments | ({"max_steps": steps} if steps else {})
            arguments |= {"warmup_steps": 0} if steps == 1 else {}  # a warm-up would be all of it
            name = row.name if stage == last else (row.after or recipe.name)
            stages[stage] = recipe.model_copy(update={"name": name, "training_arguments": arguments})
    written = {"stages": {stage: recipe.model_dump(mode="json") for stage, recipe in stages.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(written, allow_unicode=True, sort_keys=False)
    (folder / f"{row.name}.yaml").write_text(f"# {row.title}\n{text}", "utf-8")
    return stages

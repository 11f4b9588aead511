"""Reads the rows of the papers' tables: a recipe of `jobs/`, what is set over it, and the paper's numbers."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.near_names import nearest_name
from sea_pipeline.core.settings import Strict
from trainer.recipes.files import read_recipes
from trainer.recipes.names import PAPERS, builtin_recipes, papers_file, recipe_names
from trainer.recipes.recipe import Recipe

_FAST = ("--precision", "bfloat16", "--workers", "8")
"""How the papers' half a million images are labelled on eight GPUs."""
LAUNCH = "torchrun --nproc-per-node 8 -m sea_pipeline"
"""The launcher for the papers' eight GPUs."""


class _Tower(Strict):
    vision: str
    encoder: str


class _Llm(Strict):
    llm: str
    set: tuple[str, ...] = ()


class _Parts(Strict):
    towers: dict[str, _Tower]
    llms: dict[str, _Llm]


class _RowDefaults(Strict):
    """The keys that a row sets, or its table for all rows."""

    recipe: str | None = None
    tower: str = "clip-l"
    llm: str = "vicuna-7b"
    set: tuple[str, ...] = ()


class _Row(_RowDefaults):
    label: str
    expected: tuple[float | None, ...] = ()


class _Table(_RowDefaults):
    title: str
    columns: tuple[str, ...]
    hardware: str
    rows: dict[str, _Row]


class _Paper(Strict):
    paper: str
    tables: dict[str, _Table]


class PaperRow(NamedTuple):
    """A row of a table that can be trained."""

    name: str
    """The name that `sea-pipeline train` takes."""
    paper: str
    table: str
    label: str
    """The row's name in the paper."""
    recipe: str
    """A file of `jobs/`, without `.yaml`."""
    overrides: tuple[str, ...]
    """The overrides of the recipe, see `read_recipes`."""
    vision: str
    llm: str
    encoder: str
    """For `init` and `label`."""
    expected: dict[str, float | None]
    """The paper's numbers by benchmark; None if the paper only draws them."""
    hardware: str

    def recipes(self, overrides: Sequence[str] = ()) -> dict[str, Recipe]:
        """Read the row's stages, see `read_recipes`.

        `overrides` go over the row's own.
        """
        return read_recipes(builtin_recipes()[self.recipe], [*self.overrides, *overrides])

    def commands(self) -> list[str]:
        """List the commands from parts and data to a trained model.

        They are `init`, `label` for each stage that needs labels, and `train`. If a stage keeps checkpoints,
        `eval-commands` along it follows, and the command for the table of its results.
        """
        stages = list(self.recipes().values())
        parts: list[object] = ["--vision", self.vision, "--llm", self.llm]
        lines = [["init", *parts, "--out", stages[0].model, "--dtype", "bfloat16"]]
        for stage in stages:
            if stage.loss.sea.weight:
                data = ["--images", stage.data.train, "--image-root", stage.data.image_root]
                lines.append(["label", *data, "--encoder", self.encoder, "--out", stage.labels.path, *_FAST])
        made = [f"sea-pipeline {shlex.join(map(str, line))}" for line in lines]
        made.append(f"{LAUNCH} train {self.name} --out runs/{self.name}")
        results = f"runs/{'-'.join(self.name.split('-')[:2])}-results"
        for name, stage in self.recipes().items():
            if stage.keep_checkpoints:
                made.append(f"sea-pipeline eval-commands runs/{self.name}/{name} --gpus 8 --out {results} | sh")
                made.append(f"sea-pipeline eval-commands --collect {results}")
        return made


def paper_rows() -> dict[str, PaperRow]:
    """Return all rows of both papers by name, in the papers' order."""
    parts = _Parts.model_validate(papers_file("parts"))
    rows = {}
    for file in PAPERS:
        paper = _Paper.model_validate(papers_file(file))
        for prefix, table in paper.tables.items():
            for suffix, row in table.rows.items():
                rows[f"{prefix}-{suffix}"] = _paper_row(f"{prefix}-{suffix}", row, table, paper.paper, parts)
    return rows


def named_recipes(spec: str, overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """Read the runs of a recipe by its file or its name.

    Args:
        spec: a YAML file, a row of a paper such as `sea-table2-gemma-2b`, or a recipe that comes with the project such
            as `demo`.
        overrides: as for `read_recipes`.

    Raises:
        UserError: there is no such recipe; see `read_recipes`.
    """
    path = Path(spec)
    if spec.endswith((".yaml", ".yml")) or (path.exists() and not path.is_dir()):  # --out may be named like a recipe
        return read_recipes(path, overrides)
    if row := paper_rows().get(spec):
        return row.recipes(overrides)
    if file := builtin_recipes().get(spec):
        return read_recipes(file, overrides)
    raise UserError(
        f"{spec}: expected a recipe's .yaml file or a name that sea-pipeline recipes lists; found none"
        f"{nearest_name(spec, recipe_names())}"
    )


def _paper_row(name: str, row: _Row, table: _Table, paper: str, parts: _Parts) -> PaperRow:
    def own_or_table(key: Literal["recipe", "tower", "llm"]) -> str:
        value: str = getattr(row if key in row.model_fields_set else table, key)
        return value

    tower, llm = parts.towers[own_or_table("tower")], parts.llms[own_or_table("llm")]
    model = f"model=models/{own_or_table('tower')}-{own_or_table('llm')}"
    numbers: Mapping[str, float | None] = (
        dict(zip(table.columns, row.expected, strict=True)) if row.expected else dict.fromkeys(table.columns)
    )
    return PaperRow(
        name,
        paper,
        table.title,
        row.label,
        own_or_table("recipe"),
        (f"name={name}", model, *llm.set, *table.set, *row.set),
        tower.vision,
        llm.llm,
        tower.encoder,
        dict(numbers),
        table.hardware,
    )

"""Read the small files that a training run leaves, for reports, exports and later commands."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.settings import Count
from sea_pipeline.output.records import Record, first_problem
from sea_pipeline.storage.hashing import fingerprint_of, leaves
from sea_pipeline.storage.json_files import Seconds, Sha256, Text, json_object, read_json

MEASURED_ON = "measured_on"
"""The key of a logged evaluation that says of which held-out rows and labels it is; early versions lack it."""
_COMPUTED = ("training_arguments.gradient_accumulation_steps", "loss.basic.lens")
"""The beginnings of keys whose values in a run's fields are not those of its recipe."""


class RunFile(Record):
    """The parts of a training run's `run.json` that other commands read."""

    model_config = ConfigDict(extra="ignore")

    recipe: dict[str, Any] = Field(default_factory=dict)
    fields: dict[str, Any] = Field(default_factory=dict)
    fingerprint: Text = ""
    images: dict[str, Sha256] = Field(default_factory=dict)
    """`images_sha256` of the labels and of the teacher's targets; absent from runs of earlier versions."""
    versions: dict[str, str] = Field(default_factory=dict)
    stages: list[Text] = Field(default_factory=list)
    """The names of the recipe's stages, in order."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.fingerprint and fingerprint_of(self.fields) != self.fingerprint:
            raise ValueError("its fingerprint is not that of its fields")
        counted, recipe = self.fields.get("recipe"), leaves(self.recipe)
        if not recipe or not isinstance(counted, dict):
            return self
        for key, value in leaves(counted).items():
            if not key.startswith(_COMPUTED) and recipe.get(key) != value:
                raise ValueError(f"recipe.{key} is not that of its fields")
        return self


class SummaryFile(Record):
    """The parts of a training run's `summary.json` that other commands read."""

    model_config = ConfigDict(extra="ignore")

    name: Text = ""
    start: dict[str, float] = Field(default_factory=dict)
    end: dict[str, float] = Field(default_factory=dict)
    steps: Count = 0
    seconds: Seconds = 0.0


def read_run_file(path: Path, record: type[RunFile | SummaryFile], *needed: str) -> dict[str, Any]:
    """Read a training run's `run.json` or `summary.json` as an object.

    A key that an older version does not write is absent, unless it is among `needed`.

    Raises:
        UserError: the file cannot be read, lacks a needed key, or holds a value that no run writes.
    """
    found = read_json(path)
    try:
        json_object(data := path.read_bytes())
        record.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{path}: damaged{first_problem(error)}; restore it") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged: {one_line(error)}; restore it") from error
    if missing := [key for key in needed if key not in found]:
        raise UserError(f"{path}: expected {missing[0]!r} in it; found none; restore the file")
    return found


class Stages(NamedTuple):
    """The folders of a training run's stages."""

    folders: list[Path]
    ordered: bool
    """Whether the runs say their order. Otherwise it is that of their files' times, which a copy may lose."""


def stage_folders(folder: Path) -> Stages:
    """List the folders of a training run's stages in the order of the recipe, or else in that in which they began."""
    records = sorted(folder.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    named = max((_stage_names(path) for path in records), key=len, default=[])
    folders = [path.parent for path in records]
    if ordered := all(one.name in named for one in folders):
        folders.sort(key=lambda one: named.index(one.name))
    return Stages(folders, ordered)


def _stage_names(path: Path) -> list[str]:
    """Read the names of a recipe's stages; early versions do not write them, and what is damaged has none."""
    with suppress(UserError):
        names: list[str] = read_run_file(path, RunFile).get("stages", [])
        return names
    return []


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the logged objects of a run's `metrics.jsonl`.

    A last line that a kill has cut in half is left out. An absent file has none.

    Raises:
        UserError: another line is damaged.
    """
    lines: list[dict[str, Any]] = []
    texts = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        line: Any = None
        with suppress(ValueError, RecursionError):
            line = json.loads(text.decode("utf-8"))
        if isinstance(line, dict) and all(isinstance(line.get(key), int | float) for key in ("step", "seconds")):
            lines.append(line)
        elif number < len(texts):
            raise UserError(
                f"{path}: line {number}: damaged: expected a JSON object with the numbers step and seconds; put back a "
                "copy of the file, or remove that line, and run the same command again"
            )
    return lines


def comparable(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the evaluations of other held-out rows or labels than those of the last one.

    One that does not say what it is of stays.
    """
    said = [line[MEASURED_ON] for line in lines if MEASURED_ON in line]
    return [line for line in lines if line.get(MEASURED_ON) in (None, *said[-1:])]

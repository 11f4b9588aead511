"""The small files that a training run leaves, as reports, exports and later commands read them."""

import json
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.output.records import Record, first_problem
from sea_pipeline.storage.json_files import Count, Seconds, Text, json_object, read_json


class RunFile(Record):
    """What `run.json` of a training run says, as far as others read it."""

    model_config = ConfigDict(extra="ignore")

    recipe: dict[str, Any] = Field(default_factory=dict)
    fields: dict[str, Any] = Field(default_factory=dict)
    fingerprint: Text = ""
    versions: dict[str, str] = Field(default_factory=dict)


class SummaryFile(Record):
    """The same of `summary.json`."""

    model_config = ConfigDict(extra="ignore")

    name: Text = ""
    start: dict[str, float] = Field(default_factory=dict)
    end: dict[str, float] = Field(default_factory=dict)
    steps: Count = 0
    seconds: Seconds = 0.0


def read_run_file(path: Path, record: type[RunFile | SummaryFile]) -> dict[str, Any]:
    """The object in a training run's `run.json` or `summary.json`; a key that an older version lacks is absent.

    Raises:
        UserError: it cannot be read, or a value is none that a run writes.
    """
    found = read_json(path)
    try:
        json_object(data := path.read_bytes())
        record.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{path}: damaged{first_problem(error)}; restore it") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged: {one_line(error)}; restore it") from error
    return found


def read_log(path: Path) -> list[dict[str, Any]]:
    """The logged objects of a run's `metrics.jsonl`; a line that is damaged, or cut in half by a kill, ends them."""
    lines: list[dict[str, Any]] = []
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            break
        numbers = [line.get("step"), line.get("seconds")] if isinstance(line, dict) else [None]
        if not all(isinstance(number, int | float) for number in numbers):
            break
        lines.append(line)
    return lines

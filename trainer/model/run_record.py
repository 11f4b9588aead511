"""Reads `run.json` of a run, and finds the checkpoints that the run keeps."""

import re
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.output.run_files import RunFile, SummaryFile, read_run_file
from trainer.recipes.files import problems
from trainer.recipes.recipe import Recipe


class RunRecord(NamedTuple):
    """The content of a run's `run.json`."""

    recipe: Recipe
    began_with: str
    """The `weights_digest` of the model folder that it began with."""
    fingerprint: str
    labels: str | None
    """The fingerprint of the labels that it trains on; None for none."""


def kept_path(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint that a run keeps of a step, whether it exists or not."""
    return run / "kept" / f"checkpoint-{step}"


def kept_steps(run: Path) -> list[int]:
    """List the steps of the checkpoints that a run has kept so far."""
    return [step for step, _ in numbered(run / "kept")]


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """List the checkpoints of a folder with their steps, by step."""
    named = ((re.fullmatch(r"checkpoint-(0|[1-9][0-9]*)", path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in named if match)


def last_step(run: Path) -> int | None:
    """Return how many steps a finished run has, or None if the run is not finished.

    Raises:
        UserError: its summary is damaged.
    """
    summary = run / "summary.json"
    if not summary.is_file():
        return None
    steps: int = read_run_file(summary, SummaryFile, "steps")["steps"]
    return steps


def read_run(run: Path, *, finished: bool = True) -> RunRecord:
    """Read the record of a run.

    Args:
        run: its folder.
        finished: refuse a run that is not finished.

    Raises:
        UserError: the folder is not a run's, or is of another version; see `finished`, too.
    """
    try:
        found = read_run_file(run / "run.json", RunFile)
        recipe = Recipe.model_validate(found["recipe"])
        fields = found["fields"]
        record = RunRecord(recipe, fields["model"]["weights"], found["fingerprint"], fields.get("labels"))
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        reason = problems(error, "recipe", {}) if isinstance(error, ValidationError) else one_line(error)
        raise UserError(
            f"{run / 'run.json'}: expected a run of this version; {reason}; restore it, or train anew"
        ) from error
    if finished and not (run / "summary.json").is_file():
        raise UserError(
            f"{run}: expected a finished run; found no summary.json; wait for its end, or, if it was stopped, run the "
            "same sea-pipeline train command again"
        )
    return record

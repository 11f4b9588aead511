"""What `run.json` says of a run that is finished."""

import json
from pathlib import Path
from typing import NamedTuple

from sea_pipeline.errors import UserError, one_line
from trainer.recipe import Recipe


class RunRecord(NamedTuple):
    """What `run.json` says of a run."""

    recipe: Recipe
    began_with: str
    """`weights_digest` of the model folder that it began with."""
    fingerprint: str


def read_run(run: Path) -> RunRecord:
    """The record of a finished run.

    Raises:
        UserError: the folder is none of a run, or of another version, or the run is not finished.
    """
    try:
        found = json.loads((run / "run.json").read_text("utf-8"))
        recipe = Recipe.model_validate(found["recipe"])
        record = RunRecord(recipe, found["fields"]["model"]["weights"], found["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = one_line(error)
        raise UserError(f"{run / 'run.json'}: expected a run of this version; it cannot be read: {reason}") from error
    if not (run / "summary.json").is_file():
        raise UserError(
            f"{run}: expected a finished run; found no summary.json; go on with sea-pipeline train --resume"
        )
    return record

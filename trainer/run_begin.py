"""`run.json`: a run's folder begun, or found to be of the same run."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers

from sea_pipeline import __version__
from sea_pipeline.core.errors import UserError
from sea_pipeline.output.records import load_record
from sea_pipeline.output.run_files import RunFile
from sea_pipeline.storage.hashing import differing_fields, fingerprint_of
from sea_pipeline.storage.paths import entries
from sea_pipeline.storage.publish import TEMPORARY, make_folder, publish_bytes, sweep
from trainer.recipes.recipe import Recipe
from trainer.run_fields import ACCUMULATION

NO_RUN = "expected a run to go on with; found none; leave out --resume to begin one"
_MICRO_BATCHES = f"processes x training_arguments.{ACCUMULATION}"


def begin_run(out: Path, fields: dict[str, Any], recipe: Recipe, resume: bool) -> None:
    """Begins a run's folder, or finds that it is this run's.

    Args:
        out: the folder.
        fields: what the run is, see `run_fields`.
        recipe: for the record.
        resume: there must be a run to go on with.

    Raises:
        UserError: the folder holds another run, or other files; there is none to go on with.
    """
    described = out / "run.json"
    held = {path.name for path in entries(out)}
    if described.name not in held:
        if resume:
            raise UserError(f"{out}: {NO_RUN}")
        if held - {TEMPORARY}:
            raise UserError(f"{out}: expected a new folder or one of a run; found other files; choose another --out")
        make_folder(out)
        sweep(out)
        record = {"fields": fields, "fingerprint": fingerprint_of(fields), "recipe": recipe.model_dump(mode="json")}
        record["versions"] = {
            "sea-pipeline": __version__, "torch": torch.__version__, "transformers": transformers.__version__
        }  # fmt: skip
        with suppress(FileExistsError):  # of another machine's process, without a lock between us
            publish_bytes(described, (json.dumps(record, indent=2) + "\n").encode(), out, exclusive=True)
            return
    try:
        found = load_record(described, RunFile).fields
    except UserError as damage:
        raise UserError(f"{damage}; restore it, or choose another --out") from damage
    if differences := differing_fields(found, fields):
        problem = "; ".join(differences[:6]).replace(f"recipe.training_arguments.{ACCUMULATION}", _MICRO_BATCHES)
        raise UserError(f"{out}: holds another run: {problem}; choose another --out")
    sweep(out)

"""Find how the run that trained a model measures it, so that `evaluate` measures it alike."""

from pathlib import Path
from typing import NamedTuple

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Reporter
from trainer.model.prompts import TemplateName
from trainer.model.run_record import read_run
from trainer.recipes.recipe import Sea
from trainer.words import Prefix

UNCUT = 1 << 30
"""A `max_length` that cuts no row."""
_PREFIX: Prefix = "space"


class OwnRun(NamedTuple):
    """The settings of a model's own run that decide what its metrics are."""

    record: Path | None = None
    """The run's `run.json`; None for a model that is not in a run's folder."""
    word_prefix: Prefix = _PREFIX
    """See `Sea.word_prefix`."""
    max_length: int = UNCUT
    """See `Data.max_length`."""
    template: TemplateName = "own"
    """See `Data.template`."""


def own_run(model: Path, reporter: Reporter) -> OwnRun:
    """Read the settings from the `run.json` beside a model folder, and say which differ from those without a run."""
    record = model.resolve().parent / "run.json"
    if not record.is_file():
        return OwnRun()
    try:
        recipe = read_run(record.parent, finished=False).recipe
    except UserError as problem:
        reporter.warning(f"{problem}; the model is measured as one without a run, with loss.sea.word_prefix {_PREFIX}")
        return OwnRun()
    sea: Sea = recipe.loss.sea
    if sea.word_prefix != _PREFIX:
        reporter.message(f"words are spelled as in the model's run, loss.sea.word_prefix: {sea.word_prefix} ({record})")
    if recipe.data.template != "own":
        reporter.message(f"rows are written as in the model's run, data.template: {recipe.data.template} ({record})")
    return OwnRun(record, sea.word_prefix, recipe.data.max_length, recipe.data.template)

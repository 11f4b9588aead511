"""A recipe of several stages: each starts from the model that the one before it left."""

from pathlib import Path

from trainer.recipes.recipe import Recipe
from trainer.train import QUIET, Told, TrainRun, train


def train_stages(
    recipes: dict[str, Recipe], out: Path | None = None, *, resume: bool = False, told: Told = QUIET
) -> dict[str, TrainRun]:
    """Trains each stage, or finds that it is finished; see `train`.

    Args:
        recipes: of `read_recipes`, in order.
        out: the folder; with several stages, a folder of theirs is below it for each.
        resume: as in `train`: the first stage at least must have begun.
        told: who hears of it.

    Raises:
        UserError: see `train`.
    """
    runs: dict[str, TrainRun] = {}
    model: Path | None = None
    for name, recipe in recipes.items():
        if name:
            told.say(f"stage {name}")
        if model is not None:
            recipe = recipe.model_copy(update={"model": model})
        folder = out / name if out is not None and name else out
        runs[name] = train(recipe, folder, resume=resume and not runs, told=told)
        model = runs[name].model
    return runs

"""Check a recipe's files without torch, whose import takes seconds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import EncoderOptions, check_encoder
from sea_pipeline.inputs.wordlists import find_wordlist
from sea_pipeline.output.folder import check_is_ours
from trainer.data.files import LABELS, check_conversations, check_conversations_file, conversations_file
from trainer.model.existing_folder import check_existing_folder
from trainer.model.llava_folder import check_llava_folder
from trainer.model.weight_files import weight_files
from trainer.recipes.recipe import ExistingModel, Parts, Recipe


def unfinished(recipes: Mapping[str, Recipe], out: Path | None) -> dict[str, Recipe]:
    """Return the stages that are not finished in the folder `out`; None has none."""
    done = {name for name in recipes if out is not None and (out / name / "summary.json").is_file()}
    return {name: recipe for name, recipe in recipes.items() if name not in done}


@contextmanager
def of_stage(name: str) -> Iterator[None]:
    """Name the stage in each error of the block; "" is a recipe without stages."""
    try:
        yield
    except UserError as error:
        raise (UserError(f"stage {name}: {error}") if name else error) from error


def check_recipes(recipes: Mapping[str, Recipe], out: Path | None) -> None:
    """Check the files that the stages of a recipe read, as far as earlier stages do not write them.

    Raises:
        UserError: see `check_recipe`; the line names the stage.
    """
    first = next(iter(recipes))
    for name, recipe in unfinished(recipes, out).items():
        with of_stage(name):
            check_recipe(recipe, model=name == first)


def check_recipe(recipe: Recipe, *, model: bool = True) -> None:
    """Check the files that a stage reads.

    Args:
        recipe: of the stage.
        model: also check its model; that of a later stage is written by the one before it.

    Raises:
        UserError: nothing would train, a file or a folder does not exist, or labels cannot be made.
    """
    rates, labels = recipe.learning_rates, recipe.labels
    if not (rates.projector or rates.llm or rates.vision):
        raise UserError("learning_rates: projector, llm and vision are all null; give one of them a rate")
    if not model:
        pass
    elif isinstance(recipe.model, ExistingModel):
        check_existing_folder(recipe.model.attach)
    elif not isinstance(recipe.model, Parts):
        check_llava_folder(recipe.model)
        weight_files(recipe.model)
    check_conversations(recipe.data.train, recipe.data.image_root)
    if recipe.data.evaluate:
        check_conversations_file(conversations_file(recipe.data.evaluate))
    if labels.path is not None:
        check_is_ours(labels.path)
    elif recipe.loss.sea.weight and not LABELS.is_dir():  # labels in this folder may fit, and need no word list
        find_wordlist(labels.wordlist)
        check_encoder(labels.encoder, EncoderOptions())
    if recipe.teacher is not None and recipe.loss.basic_terms():
        check_is_ours(recipe.teacher)

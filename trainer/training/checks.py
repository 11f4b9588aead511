"""Check a recipe's files without torch, whose import takes seconds."""

from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import EncoderOptions, check_encoder
from sea_pipeline.inputs.wordlists import find_wordlist
from sea_pipeline.output.folder import check_is_ours
from trainer.data.files import LABELS, check_conversations, check_conversations_file, conversations_file
from trainer.model.existing_folder import check_existing_folder
from trainer.model.llava_folder import check_llava_folder
from trainer.recipes.recipe import ExistingModel, Parts, Recipe


def check_recipe(recipe: Recipe) -> None:
    """Check the files that the first stage of a recipe reads.

    Later stages read what earlier ones have written.

    Raises:
        UserError: nothing would train, a file or a folder does not exist, or labels cannot be made.
    """
    rates, labels = recipe.learning_rates, recipe.labels
    if not (rates.projector or rates.llm or rates.vision):
        raise UserError("learning_rates: projector, llm and vision are all null; give one of them a rate")
    if isinstance(recipe.model, ExistingModel):
        check_existing_folder(recipe.model.attach)
    elif not isinstance(recipe.model, Parts):
        check_llava_folder(recipe.model)
    check_conversations(recipe.data.train, recipe.data.image_root)
    if recipe.data.evaluate:
        check_conversations_file(conversations_file(recipe.data.evaluate))
    if labels.path is not None:
        check_is_ours(labels.path)
    elif recipe.loss.sea.weight and not LABELS.is_dir():  # labels in this folder may fit, and need no word list
        find_wordlist(labels.wordlist)
        check_encoder(labels.encoder, EncoderOptions())
    if recipe.teacher is not None and {"das", "sds"} & recipe.loss.terms().keys():
        check_is_ours(recipe.teacher)

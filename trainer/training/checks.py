"""What can be wrong with a recipe's files and is known without torch, which takes seconds."""

from sea_pipeline.core.errors import UserError
from sea_pipeline.encoders import EncoderOptions, check_encoder
from sea_pipeline.inputs.wordlists import find_wordlist
from sea_pipeline.output.folder import check_is_ours
from trainer.data.files import LABELS, check_conversations, check_conversations_file, conversations_file
from trainer.model.llava_folder import check_llava_folder
from trainer.recipes.recipe import Parts, Recipe


def check_recipe(recipe: Recipe) -> None:
    """Looks at what the first stage of a recipe reads; later ones read what those before them have left.

    Raises:
        UserError: nothing would train; a file or a folder is not there; labels are to be made of what is not there.
    """
    rates, labels = recipe.learning_rates, recipe.labels
    if not (rates.projector or rates.llm or rates.vision):
        raise UserError("learning_rates: projector, llm and vision are all null; give one of them a rate")
    if not isinstance(recipe.model, Parts):
        check_llava_folder(recipe.model)
    check_conversations(recipe.data.train, recipe.data.image_root)
    if recipe.data.evaluate:
        check_conversations_file(conversations_file(recipe.data.evaluate))
    if labels.path is not None:
        check_is_ours(labels.path)
    elif recipe.loss.sea.weight and not LABELS.is_dir():  # else labels that fit may be there, without their list
        find_wordlist(labels.wordlist)
        check_encoder(labels.encoder, EncoderOptions())
    if recipe.teacher is not None and {"das", "sds"} & recipe.loss.terms().keys():
        check_is_ours(recipe.teacher)

"""Makes the terms of a recipe's loss for a model and its folder."""

from collections.abc import Sequence
from typing import Any

import torch

from sea_pipeline.core.progress import SILENT, Reporter
from trainer.losses.basic_term import BasicTerm
from trainer.losses.embeddings import input_scale
from trainer.losses.lens import Lens
from trainer.losses.sea_term import SeaTerm
from trainer.losses.supervision import Supervision, layers_of
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.load import ModelFolder
from trainer.model.reader import Reader
from trainer.model.text_lens import text_lenses
from trainer.recipes.recipe import Recipe, Sea
from trainer.words import word_tokens


def reader_of(model: Any, folder: Any) -> Reader:  # noqa: ANN401 - a LLaVA, or an existing model
    """Return the LLM of a model with a property `llm` as a reader of plain text."""
    return Reader(model.llm, model.get_input_embeddings(), folder.processor.tokenizer, folder.vocabulary)


def sea_term(tokenizer: Any, words: tuple[str, ...], sea: Sea) -> SeaTerm:  # noqa: ANN401 - any tokenizer
    """Make SEA's term for a word list and the LLM's tokenizer.

    Raises:
        UserError: see `word_tokens`.
    """
    return SeaTerm(
        word_tokens(tokenizer, words, sea.word_prefix),
        log_scale=sea.logit_scale_init,
        learnable=sea.logit_scale_learnable,
        gather=sea.gather,
        dedupe=sea.dedupe,
    )


def lens_of(model: AlignedLlava, folder: ModelFolder, recipe: Recipe, reporter: Reporter = SILENT) -> Lens | None:
    """Return the lens that the recipe asks for, or None.

    It is fitted on the model's LLM as it is before the run, or comes from the cache.
    """
    basic = recipe.loss.basic
    layers = layers_of(basic, model.llm) if basic.lens != "none" else 0
    return text_lenses(reader_of(model, folder), [basic.lens], layers, reporter).get(basic.lens) if layers else None


def basic_term(
    model: AlignedLlava, folder: ModelFolder, recipe: Recipe, terms: Sequence[str], lens: Lens | None = None
) -> BasicTerm:
    """Make BASIC's terms for a model.

    Supervision is by the model's own LLM unless the recipe names a teacher.

    Args:
        model: with the LLM's layers, unless there is a teacher.
        folder: the model's.
        recipe: of the run.
        terms: which of "das" and "sds".
        lens: see `lens_of`.

    Raises:
        UserError: the LLM is of a family whose attention cannot be read.
    """
    basic, precision = recipe.loss.basic, recipe.loss.sds.precision
    half = precision == "bfloat16" or (precision == "auto" and recipe.training_arguments.get("bf16"))
    return BasicTerm(
        terms,
        folder.vocabulary,
        supervision=Supervision(model.llm, basic, lens) if recipe.teacher is None else None,
        equal=basic.degree == "equal",
        prompt_only=basic.text == "prompt",
        scale=input_scale(model.llm),
        temperature=recipe.loss.sds.temperature,
        matmul_dtype=torch.bfloat16 if half else None,
    )

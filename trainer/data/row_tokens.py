"""Show what each row of a data file trains, token by token.

This is the command `tokens` as a function. It reads no weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.json_files import read_json
from trainer.data.conversations import conversation_rows
from trainer.data.files import check_conversations_file
from trainer.data.settings import TokensSettings as TokensSettings
from trainer.model.answer_ends import Spans
from trainer.model.folder_check import check_model_folder
from trainer.model.llava_folder import check_form, read_config
from trainer.model.message_forms import IMAGE_TOKEN
from trainer.model.parts import load_tokenizer, quiet
from trainer.model.tokenizer import prepare_tokenizer

Run = tuple[list[str | tuple[str, int]], bool]
"""A list of tokens as text, with ("image", number of visual tokens) for images, and whether they are trained."""


@dataclass(frozen=True)
class RowTokens:
    """A row as it is trained, or why it is not trained."""

    id: str
    ids: list[int | tuple[str, int]]
    """Token ids; images that follow each other are ("image", number of their visual tokens)."""
    trained: Spans
    """Half-open ranges of positions, each image counted as its visual tokens."""
    refused: str | None
    tokens: list[str]
    """The text of each entry of `ids`; an empty string for images."""

    @property
    def length(self) -> int:
        """Count the tokens, images as their visual tokens."""
        return sum(one[1] if isinstance(one, tuple) else 1 for one in self.ids)

    def to_json(self) -> dict[str, Any]:
        """Return `id` and `ids` with `trained`, or `id` and `refused`."""
        if self.refused is not None:
            return {"id": self.id, "refused": self.refused}
        return {"id": self.id, "ids": self.ids, "trained": self.trained}

    def runs(self) -> Iterator[Run]:
        """Yield the tokens as text, split into runs that are trained or not."""
        edges = sorted({0, self.length, *(edge for span in self.trained for edge in span)})
        starts = {first for first, _ in self.trained}
        index, position = 0, 0
        for start, end in pairwise(edges):
            run: list[str | tuple[str, int]] = []
            while position < end:
                one = self.ids[index]
                run.append(one if isinstance(one, tuple) else self.tokens[index])
                position += one[1] if isinstance(one, tuple) else 1
                index += 1
            yield run, start in starts


def row_tokens(settings: TokensSettings) -> Iterator[RowTokens]:
    """Tokenise the rows of a data file as training does.

    Raises:
        UserError: the model, the file or the template does not fit.
    """
    check_conversations_file(settings.data)
    with quiet():
        tokenizer, visual_tokens = _tokenizer(settings)
        rows = conversation_rows(
            settings.data,
            tokenizer,
            template=settings.template,
            image_tokens=visual_tokens,
            max_length=settings.max_length,
            limit=settings.limit,
        )
        for row in rows:
            yield _folded(row, tokenizer, visual_tokens)


def _tokenizer(settings: TokensSettings) -> tuple[PreTrainedTokenizerBase, int]:
    """Load the tokenizer that training would use, and the number of tokens that an image becomes."""
    folder, wanted = Path(settings.model), settings.visual_tokens
    config = read_json(folder / "config.json", absent={}) if folder.is_dir() else {}
    if config.get("model_type") == "llava":
        checked = check_model_folder(folder)
        if wanted not in (None, checked.visual_tokens):
            raise UserError(
                f"--visual-tokens {wanted}: {folder} makes {checked.visual_tokens} of an image; leave the option out"
            )
        return checked.processor.tokenizer, checked.visual_tokens
    if wanted is None:
        check_form(folder, config)
        if "vision_config" in config:  # no LLM; this says what it is
            read_config(folder)
        raise UserError(
            f"{settings.model}: expected a LLaVA folder, which says how many tokens an image becomes; for an LLM add "
            "--visual-tokens, such as --visual-tokens 576 for CLIP-L at 336 pixels"
        )
    tokenizer, _ = prepare_tokenizer(load_tokenizer(settings.model), settings.model)
    return tokenizer, wanted


def _folded(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, visual_tokens: int) -> RowTokens:
    if row["refused"] is not None:
        return RowTokens(row["id"], [], [], row["refused"], [])
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    numbers = np.asarray(row["input_ids"])
    trained = np.repeat(row["trained"], np.where(numbers == image, visual_tokens, 1))
    edges = np.flatnonzero(np.diff(trained, prepend=False, append=False)).tolist()
    ids: list[int | tuple[str, int]] = []
    for number in numbers.tolist():
        before = ids[-1] if ids else None
        if number == image and isinstance(before, tuple):
            ids[-1] = ("image", before[1] + visual_tokens)
        else:
            ids.append(("image", visual_tokens) if number == image else number)
    tokens = ["" if isinstance(one, tuple) else str(tokenizer.convert_ids_to_tokens(one)) for one in ids]
    return RowTokens(row["id"], ids, list(zip(edges[::2], edges[1::2], strict=True)), None, tokens)

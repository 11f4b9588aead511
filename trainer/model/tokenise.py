"""Turns rendered conversations into token ids that fit a length, and the mask of those that are trained."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from trainer.model.answer_ends import Spans
from trainer.model.message_forms import IMAGE_TOKEN
from trainer.model.prompts import NO_ANSWER, RenderedText, front

SPACES = (" ", "\u2581")
"""A space, and SentencePiece's letter for it."""


_LIMITS = ("max_length", "stride", "truncation", "truncation_strategy", "padding", "pad_to_multiple_of")
"""Settings of a tokenizer that processors take for all texts."""


class Tokens(NamedTuple):
    """The token ids of a text of its own, without BOS and EOS."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    """The half-open character range of each token in the text. An added space has the first character's range."""


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Tokens]:
    """Tokenise texts, each as a text of its own, in one call that uses all cores.

    SentencePiece puts a space before every text. Its imitation in `tokenizers` leaves that space out if the text begins
    with a space already. It is put back here.

    Args:
        tokenizer: a fast one.
        texts: any number of them; they may be empty.
    """
    if not texts:
        return []
    skips = adds_space(tokenizer)
    added = [int(skips and text.startswith(SPACES)) for text in texts]
    encoded = tokenizer(
        [" " * extra + text for extra, text in zip(added, texts, strict=True)],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    found = zip(encoded["input_ids"], encoded["offset_mapping"], added, strict=True)
    return [
        Tokens(ids, [(max(start - extra, 0), max(end - extra, 1)) for start, end in offsets] if extra else offsets)
        for ids, offsets, extra in found
    ]


def adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer puts a space before a text that does not begin with one."""
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    return pre_tokenizer is not None and _adds_space(json.loads(pre_tokenizer.__getstate__()))


def _adds_space(state: dict[str, Any]) -> bool:
    if state["type"] == "Sequence":
        return any(map(_adds_space, state["pretokenizers"]))
    return bool(state["type"] == "Metaspace" and state.get("prepend_scheme", "always") != "never")


def without_limits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Remove the truncation and padding that a tokenizer was saved with, as many are after fine-tuning.

    A processor cuts prompts by them, and images in the prompts.
    """
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    for name in _LIMITS:
        tokenizer.init_kwargs.pop(name, None)


_LONGER = "raise max_length, or "
"""Advice in the reason why a row is refused, for those who can follow it."""
_WITHIN = "within max_length {}"


def as_of_run(reason: str, max_length: int, run: Path) -> str:
    """Write a reason for those who cannot raise `max_length`, because a run set it.

    Args:
        reason: why a row is refused.
        max_length: what the run set.
        run: its record.
    """
    found = reason.replace(_LONGER, "")
    return found.replace(_WITHIN.format(max_length), f"within data.max_length {max_length} of the model's run ({run})")


class Conversation(NamedTuple):
    """A sample before it is tokenised."""

    number: int
    """Its position in the file, from 1."""
    id: str
    images: list[str]
    rendered: RenderedText | str
    """The rendered text, or the reason why it cannot be trained."""


class ConversationTokenizer:
    """Tokenises conversations as LLaVA does, with each text before, between and after images on its own.

    So the text after an image begins as any text does, for SentencePiece with a space. A token is trained if any of
    its characters is. So the token that fuses a space with an answer's first letters is trained, as in LLaVA, and image
    tokens never are. What the tokenizer adds before a text (BOS) comes before the first text only. What it adds after a
    text (EOS) is left out, because the template writes the EOS.

    Args:
        tokenizer: a fast one, which knows `<image>`.
        image_tokens: the number of tokens that each image token becomes in the model.
        max_length: the most tokens that a sample may have after that.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_tokens: int, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._image_id = tokenizer.get_added_vocab()[IMAGE_TOKEN]
        self._image_tokens = image_tokens
        self._max_length = max_length
        self._front = front(tokenizer)

    def __call__(self, conversations: Sequence[Conversation]) -> Iterator[dict[str, Any]]:
        """Yield the rows of `conversations.FEATURES`, from one call of the tokenizer.

        A row is refused if its conversation was refused before, if the template lost an image token, or if no trained
        token is left within `max_length`.
        """
        cut = [[] if isinstance(one.rendered, str) else one.rendered.text.split(IMAGE_TOKEN) for one in conversations]
        tokens = iter(tokenise(self._tokenizer, [piece for pieces in cut for piece in pieces]))
        for conversation, pieces in zip(conversations, cut, strict=True):
            rendered, found = conversation.rendered, [next(tokens) for _ in pieces]
            if isinstance(rendered, str):
                yield _refused(conversation, rendered)
            elif len(pieces) - 1 != len(conversation.images):
                reason = (
                    f"expected {len(conversation.images)} image tokens in the rendered conversation; found "
                    f"{len(pieces) - 1}; choose a template that keeps messages as they are"
                )
                yield _refused(conversation, reason)
            else:
                yield self._row(conversation, *self._joined(rendered, pieces, found))

    def _joined(
        self, rendered: RenderedText, pieces: list[str], found: list[Tokens]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Join the pieces of a text with an image token between each two, and return its ids and mask."""
        ids: list[int] = []
        trained: list[npt.NDArray[np.bool_]] = []
        if found[0].ids[: len(self._front)] != self._front:  # a chat template may have written it
            ids += self._front
            trained.append(np.zeros(len(self._front), bool))
        offset = 0
        for number, (piece, tokens) in enumerate(zip(pieces, found, strict=True)):
            if number:
                ids.append(self._image_id)
                trained.append(np.zeros(1, bool))
            ids += tokens.ids
            trained.append(_within(np.array(tokens.offsets, np.int64).reshape(-1, 2) + offset, rendered.spans))
            offset += len(piece) + len(IMAGE_TOKEN)
        return np.array(ids, np.int32), np.concatenate(trained)

    def _row(
        self, conversation: Conversation, ids: npt.NDArray[np.int32], trained: npt.NDArray[np.bool_]
    ) -> dict[str, Any]:
        is_image = ids == self._image_id
        lengths = np.where(is_image, self._image_tokens, 1).cumsum()
        kept = int(np.searchsorted(lengths, self._max_length, side="right"))
        if not trained[:kept].any():
            if trained.any():
                reason = (
                    f"expected an answer {_WITHIN.format(self._max_length)}; found {lengths[trained.argmax()] - 1} "
                    f"tokens before it; {_LONGER}shorten or remove the sample"
                )
            else:
                reason = NO_ANSWER
            return _refused(conversation, reason)
        return {
            "id": conversation.id,
            "images": conversation.images[: int(is_image[:kept].sum())],
            "input_ids": ids[:kept],
            "trained": trained[:kept],
            "length": int(lengths[kept - 1]),
            "truncated": kept < len(ids),
            "number": conversation.number,
            "refused": None,
        }


def _refused(conversation: Conversation, reason: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {"images": [], "input_ids": [], "trained": [], "length": 0, "truncated": False}
    return {"id": conversation.id, **nothing, "number": conversation.number, "refused": reason}


def _within(ranges: npt.NDArray[np.int64], spans: Spans) -> npt.NDArray[np.bool_]:
    """Tell which of the character ranges, (tokens, 2), have a character in one of the spans."""
    start, end = ranges.T
    inside = np.zeros(len(ranges), bool)
    for first, last in spans:
        inside |= (start < last) & (end > first)
    inside &= start < end
    return inside

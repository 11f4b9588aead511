"""Rendered conversations to token ids, the mask of what is trained, and a length that fits."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from sea_pipeline.errors import UserError
from trainer.templates import Rendered


class Conversation(NamedTuple):
    """A sample before it is tokenised."""

    where: str
    """File, place and id, for messages."""
    id: str
    images: list[str]
    rendered: Rendered


class Encoder:
    """Tokenises conversations, each whole and once: a token is trained if any of its characters is.

    So the token that fuses a space with an answer's first letters is trained, as in LLaVA; image tokens and tokens of
    no characters never are. What the tokenizer puts in front by itself (BOS) is kept, what it puts behind (EOS) is not:
    an EOS is there only where the template wrote one.

    Args:
        tokenizer: a fast one.
        image_token: an added token of it.
        image_tokens: tokens that each image token becomes in the model.
        max_length: tokens a sample may have after that.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, image_token: str, image_tokens: int, max_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._image_id = tokenizer.get_added_vocab()[image_token]
        self._image_tokens = image_tokens
        self._max_length = max_length
        whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
        starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
        self._front: list[int] = whole[: starts[0]] if starts else []

    def __call__(self, conversations: Sequence[Conversation]) -> Iterator[dict[str, Any]]:
        """The rows of `conversations.FEATURES`, in one call of the tokenizer, which spreads it over the cores.

        Raises:
            UserError: the template lost an image token, or nothing trained is left within `max_length`.
        """
        encoded = self._tokenizer(
            [conversation.rendered.text for conversation in conversations],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for conversation, ids, offsets in zip(
            conversations, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            if self._front and ids[: len(self._front)] != self._front:  # a chat template may have written it
                ids, offsets = self._front + ids, [(0, 0)] * len(self._front) + offsets
            yield self._row(conversation, np.array(ids, np.int32), np.array(offsets, np.int64).reshape(-1, 2))

    def _row(self, conversation: Conversation, ids: Any, offsets: Any) -> dict[str, Any]:  # noqa: ANN401 - arrays
        where, _, images, rendered = conversation
        is_image = ids == self._image_id
        if is_image.sum() != len(images):
            raise UserError(
                f"{where}: expected {len(images)} image tokens in the rendered conversation; found {is_image.sum()}; "
                "choose a template that keeps messages as they are"
            )
        start, end = offsets.T
        trained = np.zeros(len(ids), bool)
        for first, last in rendered.spans:
            trained |= (start < last) & (end > first)
        trained &= (start < end) & ~is_image
        lengths = np.where(is_image, self._image_tokens, 1).cumsum()
        kept = int(np.searchsorted(lengths, self._max_length, side="right"))
        if not trained[:kept].any():
            raise UserError(
                f"{where}: expected an answer to train on within max_length {self._max_length}; found "
                + (f"{lengths[trained.argmax()] - 1} tokens before it" if trained.any() else "none at any length")
                + "; raise max_length, or shorten or remove the sample"
            )
        return {
            "id": conversation.id,
            "images": images[: int(is_image[:kept].sum())],
            "input_ids": ids[:kept],
            "trained": trained[:kept],
            "length": int(lengths[kept - 1]),
            "truncated": kept < len(ids),
        }

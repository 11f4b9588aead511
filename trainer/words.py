"""Converts between words and the LLM's tokens, for Eq. 8's table of a word list and for tokens that are words.

Tokenizers are those of transformers, told apart by what they do. Byte-level BPE (Llama 3, SmolLM2) writes the space
before a word as "Ġ", SentencePiece (Llama 2, Gemma, T5) as "▁". Some of the latter add that space before a text by
themselves.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, cast

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.renamed import renamed
from trainer.losses.equations import word_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__getattr__ = renamed(__name__, "trainer.losses.embeddings", {"llm_embeddings", "ordinary_length"})

Prefix = Literal["space", "none", "both-mean"]
_BEFORE = "a"
"""The text put before a word to tokenise it as in running text."""
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_BYTE_LEVEL, _SENTENCE_PIECE = "Ġ", "▁"
_IN_NO_VOCABULARY = "\U0010fffd"
"""A character of Unicode's private use."""


def word_tokens(tokenizer: "PreTrainedTokenizerBase", words: Sequence[str], prefix: Prefix) -> list[list[list[int]]]:
    """Tokenise words, without BOS and EOS.

    Args:
        tokenizer: any of transformers.
        words: q words or phrases.
        prefix: "space" takes a word as in running text, after a space: the tokens that "a word" has beyond "a". So
            there is one space, even if the tokenizer adds one by itself (Llama 2 would read " cat" as two spaces).
            "none" takes the word as a text of its own; a tokenizer that adds a space by itself gives the same as for
            "space". "both-mean" gives both forms, "space" first; the caller averages their embeddings.

    Returns:
        For each form, for each word, its ids. There is one form, or two for "both-mean".

    Raises:
        UserError: the tokenizer joins a word with the one before it, so that it has no tokens of its own; or has no
            token for a word or for a part of it. The message names the word.
    """
    forms = []
    if prefix != "none":
        forms.append(_in_running_text(tokenizer, words))
    if prefix != "space":
        forms.append(_encode(tokenizer, words))
    _refuse_unknown(tokenizer, words, forms)
    return forms


def llm_word_table(
    embeddings: torch.Tensor, tokenizer: "PreTrainedTokenizerBase", words: Sequence[str], prefix: Prefix
) -> torch.Tensor:
    """Compute Eq. 8 for a word list, the mean of the LLM's input embeddings over each word's tokens.

    Args:
        embeddings: (V, d), the LLM's input embedding matrix.
        tokenizer: the LLM's.
        words: q words or phrases.
        prefix: see `word_tokens`; "both-mean" is the mean of the two forms' means.

    Returns:
        (q, d) in the matrix's dtype, without a gradient; means are taken in float32.

    Raises:
        UserError: see `word_tokens`.
    """
    tables = [word_table(embeddings, form) for form in word_tokens(tokenizer, words, prefix)]
    return tables[0] if len(tables) == 1 else torch.stack(tables).float().mean(0).to(embeddings.dtype)


def whole_words(tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> dict[int, str]:
    """Find the tokens that are a word on their own, as in running text.

    That is "Ġcat" or "▁cat", not the "cat" in "bobcat".

    Such a token has letters only, at least two, with hyphens and apostrophes between them, and is not special. Two
    things are not checked: a token may go on, as "Ġcat" does in "category", and it may be no word of any language.

    Args:
        tokenizer: one that marks the space before a word in its tokens, with "Ġ" or "▁".
        vocabulary: ids from this one on, such as rows that only pad the embedding matrix, are left out.

    Returns:
        Token id -> word, lower-cased, ids ascending. "ĠCat" and "Ġcat" both give "cat".

    Raises:
        UserError: no token begins with either mark.
    """
    tokens = tokenizer.get_vocab()
    counts = {mark: sum(token.startswith(mark) for token in tokens) for mark in (_BYTE_LEVEL, _SENTENCE_PIECE)}
    mark = max(counts, key=lambda each: counts[each])  # either may also be a letter of the other kind's vocabulary
    if counts[mark] == 0:
        raise UserError(
            f"the LLM's tokenizer has no token that begins with {_BYTE_LEVEL} or {_SENTENCE_PIECE}; expected a "
            "byte-level BPE or SentencePiece tokenizer, whose tokens show where words begin"
        )
    special = special_tokens(tokenizer)
    found = {}
    for token, id_ in sorted(tokens.items(), key=lambda item: item[1]):
        if id_ < vocabulary and id_ not in special and token.startswith(mark):
            word = ByteLevel().decode([token])[1:] if mark == _BYTE_LEVEL else token[1:]
            if _WORD.fullmatch(word) and sum(map(str.isalpha, word)) >= 2:
                found[id_] = word.lower()
    return found


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the ids of all special tokens.

    They are the ends of texts and turns, marks of roles, and padding.
    """
    added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _in_running_text(tokenizer: "PreTrainedTokenizerBase", words: Sequence[str]) -> list[list[int]]:
    (before,) = _encode(tokenizer, [_BEFORE])
    texts = _encode(tokenizer, [f"{_BEFORE} {word}" for word in words])
    for word, ids in zip(words, texts, strict=True):
        if ids[: len(before)] != before:
            raise UserError(
                f"the LLM's tokenizer joins the word {word!r} with the one before it in {f'{_BEFORE} {word}'!r}; "
                "leave it out of the list, or take words without a leading space"
            )
    return [ids[len(before) :] for ids in texts]


def _refuse_unknown(
    tokenizer: "PreTrainedTokenizerBase", words: Sequence[str], forms: Sequence[Sequence[Sequence[int]]]
) -> None:
    unknown = _unknown_id(tokenizer)
    lacking = [word for word, *ids in zip(words, *forms, strict=True) if not all(ids) or any(unknown in i for i in ids)]
    if lacking:
        what, it = f"the word {lacking[0]!r}", "it"
        if len(lacking) > 1:
            what, it = f"{len(lacking):,} words, such as {', '.join(map(repr, lacking[:3]))}", "them"
        raise UserError(
            f"the LLM's tokenizer has no token for {what}, or for parts of {it}; leave {it} out of the word list, and "
            "label again"
        )


def _unknown_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the id that the tokenizer gives for what its vocabulary lacks, or None if it gives none.

    `unk_token` does not tell: GPT-2's is <|endoftext|>, which a byte-level tokenizer never gives for a text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return cast("int | None", tokenizer.unk_token_id)
    ids: list[int] = []
    with suppress(Exception):  # tokenizers' own, if the vocabulary lacks the token for what it lacks
        ids = Tokenizer(backend.model).encode(_IN_NO_VOCABULARY).ids
    return ids[0] if len(ids) == 1 else None  # several are the character's bytes

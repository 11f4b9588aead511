"""Build the contextual lens from an LLM's states over the words of plain texts, to compare visual tokens with.

It follows LatentLens (arXiv 2602.00462), which finds that visual tokens lie nearer to the states of words that the LLM
has read in a sentence than to its input embeddings.

Shapes: l decoder layers, d the LLM's width, N states, W words.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Advance
from sea_pipeline.inputs.captions import content_spans, content_words
from trainer.evaluation.evaluator import evaluating
from trainer.losses.supervision import decoder_layers, watching_layers
from trainer.measures.metrics import check_finite
from trainer.model.aligned_llava import AlignedLlava
from trainer.model.prompts import front
from trainer.model.tokenise import tokenise

TOKENS = 20_000
"""Number of words of the texts in the index, at each of its layers. A word at a layer takes at most 4 * d bytes."""
SEED = 0
"""Seed of the order in which texts are read."""
_QUARTERS = 4
"""The index has layer 0 and the layers after a quarter, a half and three quarters of the LLM. The last layers are left
out because they predict the next word."""
_TEXTS = 32
"""Number of texts in one forward pass."""


class Index(NamedTuple):
    """States of the LLM over words of plain texts, with their words."""

    states: torch.Tensor
    """float32 (N, d), unit length, in ascending order of layers."""
    layer: torch.Tensor
    """int64 (N,): the layer of each state."""
    word: torch.Tensor
    """int64 (N,): the word of each state, as a position in `words`."""
    words: list[str]
    """W content words, lower-cased, each once."""
    tokens: int
    """Number of content words of the texts that were read."""
    texts: int
    """Number of texts that were read."""

    @property
    def embeddings(self) -> int:
        """Count the states of layer 0, which are input embeddings and come first."""
        return int((self.layer == 0).sum())


class Size(TypedDict):
    """What an index is made of, in numbers."""

    layers: list[int]
    texts: int
    tokens: int
    words: int
    states: int
    embeddings: int
    """Number of states that are input embeddings, one for each token that is a whole word."""
    bytes: int


class _WordPosition(NamedTuple):
    """The place of a content word in a text's tokens."""

    word: str
    at: int
    """Position of its last token, at which the LLM has read the whole word."""
    whole: bool
    """Whether the word is a single token."""


def index_layers(count: int) -> list[int]:
    """List the layers of the index for an LLM with `count` decoder layers, in ascending order."""
    return sorted({count * quarter // _QUARTERS for quarter in range(_QUARTERS)})


def no_words(texts: int) -> UserError:
    """Make the error of texts without a content word."""
    return UserError(f"--lens-data: found no content word in {texts:,} texts; give a file with captions")


def build_index(
    model: AlignedLlava,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    tokens: int = TOKENS,
    advance: Advance = lambda _: None,
) -> Index:
    """Run the LLM over texts without an image, and keep its states over their content words.

    A word's state is that of its last token. Layer 0 has only words of a single token, and each token once. Without a
    BOS a text's first token is left out, because LLMs keep there what belongs to no word.

    Args:
        model: a model with the LLM's layers; its mode is restored afterwards.
        tokenizer: the LLM's fast tokenizer.
        texts: texts such as captions, read in an order drawn with `SEED` until there are enough words.
        tokens: most words to read.
        advance: called with the number of words done.

    Raises:
        UserError: no text has a content word, or a state is not finite.
    """
    chosen = list(_drawn(tokenizer, texts, tokens))
    if not chosen:
        raise no_words(len(texts))
    words: dict[str, int] = {}
    embedded: dict[int, int] = {}
    kept: dict[int, list[torch.Tensor]] = {}
    word: list[int] = []
    with evaluating(model):
        for start in range(0, len(chosen), _TEXTS):
            part = chosen[start : start + _TEXTS]
            positions = [(row, position) for row, (_, found) in enumerate(part) for position in found]
            word += [words.setdefault(position.word, len(words)) for _, position in positions]
            # Layer 0: each token that is a whole word, with the word of its first appearance.
            new = {part[row][0][position.at]: words[position.word] for row, position in positions if position.whole}
            embedded |= {token: number for token, number in new.items() if token not in embedded}
            for layer, states in _states(model, [ids for ids, _ in part], positions).items():
                kept.setdefault(layer, []).append(states)
            advance(len(positions))
        embed = model.get_input_embeddings()
        ids = torch.tensor(list(embedded), dtype=torch.int64, device=model.device)
        table = [unit(embed(ids))] if embedded else []
    layers = [0] * len(embedded) + [layer for layer in kept for _ in word]
    states = torch.cat([*table, *(each for layer in kept.values() for each in layer)])
    owners = torch.tensor([*embedded.values(), *(word * len(kept))])
    return Index(states, torch.tensor(layers), owners, list(words), len(word), len(chosen))


def _drawn(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: int
) -> Iterator[tuple[list[int], list[_WordPosition]]]:
    """Yield texts as token ids, with their content words, until there are enough words."""
    first = front(tokenizer)
    order = np.random.default_rng(SEED).permutation(len(texts))
    for start in range(0, len(order), _TEXTS):
        part = [texts[number] for number in order[start : start + _TEXTS]]
        for text, encoded in zip(part, tokenise(tokenizer, part), strict=True):
            positions = list(_positions(text, encoded.offsets, len(first)))[:tokens]
            tokens -= len(positions)
            if positions:
                yield [*first, *encoded.ids], positions
            if not tokens:
                return


def _positions(text: str, offsets: Sequence[tuple[int, int]], first: int) -> Iterator[_WordPosition]:
    """Yield the content words of a text that starts after `first` tokens.

    A word that ends at position 0, with no token in front of it, is skipped.
    """
    for begin, end in content_spans(text):
        within = [at for at, (start, stop) in enumerate(offsets) if start < stop and start < end and begin < stop]
        found = content_words(text[begin:end])
        if len(found) == 1 and within and within[-1] + first:
            yield _WordPosition(found[0], within[-1] + first, len(within) == 1)


def _states(
    model: AlignedLlava, texts: Sequence[Sequence[int]], positions: Sequence[tuple[int, _WordPosition]]
) -> dict[int, torch.Tensor]:
    """Compute the states at these places for each layer of the index but 0, float32 (places, d), unit length."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in texts], batch_first=True)
    rows = torch.tensor([row for row, _ in positions])
    columns = torch.tensor([position.at for _, position in positions])
    kept: dict[int, torch.Tensor] = {}

    def look(layer: int, hidden: torch.Tensor) -> None:
        if layer in wanted:
            kept[layer] = unit(hidden[rows.to(hidden.device), columns.to(hidden.device)])

    layers = decoder_layers(model.llm, "--lens")
    wanted = index_layers(len(layers))
    with watching_layers(layers, look):
        # No mask is needed: padding is on the right, where causal attention does not see it.
        model.llm(input_ids=ids.to(model.device), use_cache=False)
    return kept


def unit(states: torch.Tensor) -> torch.Tensor:
    """Convert states to float32 and normalise them to unit length.

    Raises:
        UserError: a state is not finite.
    """
    found = F.normalize(states.float(), dim=-1)
    check_finite(found, "--lens", "the LLM's states")
    return found


def nearest_states(queries: torch.Tensor, states: torch.Tensor, block: int = 2048) -> torch.Tensor:
    """Find the nearest state by cosine for each query.

    The result is exact but for float32. Nothing of the size k x N is kept.

    Args:
        queries: float32 (k, d), unit length.
        states: float32 (N, d), unit length, N >= 1.
        block: number of queries, and of states, in one product.

    Returns:
        int64 (k,): the index of the nearest state, the lowest one among equal scores.
    """
    found = []
    with torch.autocast(queries.device.type, enabled=False):
        for chunk in queries.split(block):
            value = chunk.new_full((len(chunk),), -torch.inf)
            index = torch.zeros(len(chunk), dtype=torch.int64, device=chunk.device)
            for start in range(0, len(states), block):
                score, position = torch.mm(chunk, states[start : start + block].T).max(-1)
                higher = score > value
                value, index = torch.where(higher, score, value), torch.where(higher, position + start, index)
            found.append(index)
    return torch.cat(found)


def size_of(index: Index) -> Size:
    """Describe what an index is made of, and how large it is."""
    return Size(
        layers=index.layer.unique().tolist(),
        texts=index.texts,
        tokens=index.tokens,
        words=len(index.words),
        states=len(index.states),
        embeddings=index.embeddings,
        bytes=index.states.numel() * index.states.element_size(),
    )

"""Test whether BASIC can lead to words on an LLM, on plain text, whose right answer is known.

BASIC assumes that layers 1 to k move visual tokens towards the input embeddings of fitting words (Fig. 2). The fitting
word of a text token is the token itself, so V^ of text should be near its own embeddings.

Shapes: T tokens of text, I images of m visual tokens, d the LLM's width, V its vocabulary, l decoder layers.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from sea_pipeline.core.devices import exact_float32
from sea_pipeline.storage.cache import read_checked, remembered, with_checksum
from sea_pipeline.storage.hashing import fingerprint_of
from trainer.losses import equations
from trainer.losses.embeddings import ordinary_length
from trainer.losses.lens import Lens, LensKind
from trainer.losses.supervision import LayerRecorder, Supervision
from trainer.model.plain_text import plain_text
from trainer.model.reader import Reader, at_rest
from trainer.model.text_lens import SENTENCES, lens_fields
from trainer.recipes.recipe import Basic
from trainer.words import whole_words

TOKENS = 384
"""Number of text tokens that are measured. It gives shares to a few percent, and takes seconds on a CPU."""
NEAR = 0.25
"""Least cosine of V^ to its own embeddings that is called near. L_das of words is then 1.5; by chance it is 2."""
RANK = 10
"""Greatest median rank of the own embedding that is called near. A mean of all embeddings may pass on cosine alone."""
LOWER = 0.9
"""The loss can lead to words if their L_das is at most this share of that of random vectors."""
IMAGES, PER_IMAGE, BEFORE = 8, 32, 8
"""Sizes of the control: images, words of each image, and tokens of text before them."""
_ALIKE = 1e-5
"""Cosines that differ by less count as equal, because vocabularies have equal rows."""
_VERSION = 1

Lenses = Mapping[LensKind, Lens | None]
"""Lenses by kind; "none" has None."""


class Nearness(NamedTuple):
    """How near vectors of T tokens are to the tokens' own input embeddings, by cosine among the whole vocabulary."""

    own: float
    """Share of vectors to which no other embedding is nearer, 0..1."""
    cosine: float
    """Mean cosine with the own embedding, -1..1."""
    rank: float
    """Median over tokens of the own embedding's rank, 1 to V."""


class Control(NamedTuple):
    """L_das (Eq. 6, with equal degrees) of vectors in the place of an image's visual tokens."""

    words: float
    """L_das of the embeddings of words."""
    random: float
    """L_das of random vectors of the same length, as from a projector that has learnt nothing."""


class TextNearness(NamedTuple):
    """The result of `look_at_text`."""

    layers: list[Nearness]
    """Entry 0 is of the embeddings themselves, entry i of the output of the i-th layer, up to l."""
    refined: dict[LensKind, Nearness]
    """Nearness of V^ of Eq. 4, by the lens that it is made through."""


@torch.no_grad()
def nearness(vectors: torch.Tensor, tokens: torch.Tensor, embeddings: torch.Tensor, block: int = 64) -> Nearness:
    """Compare vectors with all input embeddings.

    The figures of vectors of which some are not finite are NaN.

    Args:
        vectors: (T, d).
        tokens: int64 (T,), the vectors' own tokens, each below V.
        embeddings: float32 (V, d).
        block: number of vectors in one product.
    """
    table = F.normalize(embeddings, dim=-1)
    own, ranks = [], []
    for some, ids in zip(vectors.split(block), tokens.split(block), strict=True):
        cosines = F.normalize(some.to(table), dim=-1) @ table.T
        found = cosines.gather(1, ids.unsqueeze(1))
        own.append(found.squeeze(1))
        # The rank is 1 plus the number of embeddings that are nearer than the own one.
        ranks.append((cosines > found + _ALIKE).sum(1) + 1)
    known = torch.cat(own).isfinite()
    rank = torch.cat(ranks).double().where(known, torch.nan)
    first = (rank == 1).double().where(known, torch.nan)
    return Nearness(float(first.mean()), float(torch.cat(own).mean()), float(rank.quantile(0.5)))


def text_rows(reader: Reader, text: str | None = None) -> torch.Tensor:
    """Tokenise the given text, or plain text that no lens is fitted to, as int64 (R, L)."""
    return reader.rows(plain_text(60, skip=SENTENCES) if text is None else text, TOKENS)


def look_at_text(
    reader: Reader, rows: torch.Tensor, basic: Basic, lenses: Lenses, *, every_layer: bool = True
) -> TextNearness:
    """Measure how near the outputs of the LLM's layers, and V^ with each lens, are to the tokens' own embeddings.

    Args:
        reader: the LLM.
        rows: see `text_rows`.
        basic: settings of V^; its lens and its attention are ignored here.
        lenses: see `Lenses`.
        every_layer: also measure the layers themselves, which takes l + 1 products with the vocabulary.
    """
    rows = rows.to(reader.device)
    columns = reader.columns(rows)
    tokens, embeddings = rows[columns], reader.embeddings
    layers: list[Nearness] = []

    def look(_: int, states: torch.Tensor) -> None:
        if every_layer:
            layers.append(nearness(states, tokens, embeddings))

    with _watching(reader, basic, lenses, columns) as recorders:
        reader.read(rows, look, None if every_layer else 0)
    return TextNearness(layers, {kind: nearness(one.refined, tokens, embeddings) for kind, one in recorders.items()})


@torch.no_grad()
def control(reader: Reader, basic: Basic, lenses: Lenses) -> dict[LensKind, Control]:
    """Compute L_das, with each lens, for images whose visual tokens are embeddings of words, and random vectors.

    A loss that is no lower for words cannot lead to words.

    Raises:
        UserError: see `whole_words`.
    """
    generator = torch.Generator().manual_seed(0)
    words = torch.tensor(list(whole_words(reader.tokenizer, reader.vocabulary)))
    chosen = words[torch.randint(len(words), (IMAGES, PER_IMAGE), generator=generator)].to(reader.device)
    embeddings = reader.embeddings
    length = ordinary_length(reader.embed, reader.vocabulary)
    noise = torch.randn(IMAGES, PER_IMAGE, embeddings.shape[1], generator=generator)
    visual = {"words": embeddings[chosen], "random": (F.normalize(noise, dim=-1) * length.cpu()).to(embeddings)}
    found = {name: _das(reader, basic, lenses, one) for name, one in visual.items()}
    return {kind: Control(found["words"][kind], found["random"][kind]) for kind in lenses}


def _das(reader: Reader, basic: Basic, lenses: Lenses, visual: torch.Tensor) -> dict[LensKind, float]:
    """Compute L_das for each lens, for visual tokens (I, m, d) that follow some tokens of text."""
    before = reader.rows(plain_text(10), BEFORE)[:1].to(reader.device)
    text = reader.embed(before)
    inputs = torch.cat([text.expand(len(visual), -1, -1), visual.to(text)], 1)
    columns = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    columns[:, text.shape[1] :] = True
    with at_rest(reader.llm), _watching(reader, basic, lenses, columns) as recorders:
        reader.llm(inputs_embeds=inputs, use_cache=False)
    flat = visual.flatten(0, 1)
    weights = torch.full((len(flat),), 1 / len(flat), device=flat.device)
    length = ordinary_length(reader.embed, reader.vocabulary)
    return {kind: float(equations.das(flat, one.refined, weights, ordinary=length)) for kind, one in recorders.items()}


@contextmanager
def _watching(
    reader: Reader, basic: Basic, lenses: Lenses, columns: torch.Tensor
) -> Iterator[dict[LensKind, LayerRecorder]]:
    """Watch the next run of the LLM with each lens, within this block.

    Attention is not recorded.
    """
    length = ordinary_length(reader.embed, reader.vocabulary)
    everything = torch.ones_like(columns)
    with ExitStack() as stack:
        recorders = {}
        for kind, lens in lenses.items():
            settings = basic.model_copy(update={"degree": "equal", "lens": kind})
            supervision = Supervision(reader.llm, settings, lens)
            recorders[kind] = stack.enter_context(supervision.watching(columns, everything, everything, length=length))
        yield recorders


class Premise(NamedTuple):
    """The result of the test, as a run announces it before it begins."""

    near: bool
    text: str


@exact_float32()  # the figures are kept
def premise(reader: Reader, basic: Basic, lens: Lens | None, model: str) -> Premise:
    """Measure V^ of text through the lens of the settings.

    It takes seconds, and less if the result for the LLM is in the cache.

    Args:
        reader: the LLM before any training.
        basic: settings of V^.
        lens: the lens that the settings name; None for "none".
        model: argument of `probe --llm`, for the message.

    Raises:
        UserError: the cache cannot be written.
    """
    rows = text_rows(reader)
    made = {"version": _VERSION, "llm": reader.digest(), "rows": rows.tolist(), "basic": basic.model_dump(mode="json")}
    key = fingerprint_of(made | ({} if lens is None else {"lens": lens_fields()}))

    def make() -> Nearness:
        return look_at_text(reader, rows, basic, {basic.lens: lens}, every_layer=False).refined[basic.lens]

    near = remembered(f"premises/{key}.json", _read, make, _write)
    through = "" if basic.lens == "none" else f" through the lens `{basic.lens}`"
    if is_near(near):
        text = f"BASIC: V^ of plain text{through} is near its own embeddings ({_figures(near, reader.vocabulary)})"
    else:
        text = (
            f"BASIC: V^ of plain text{through} is not near its own embeddings ({_figures(near, reader.vocabulary)}), "
            f"so L_das and L_sds do not lead to words on this LLM; see sea-pipeline probe --llm {model}"
        )
    return Premise(is_near(near), text)


def is_near(near: Nearness) -> bool:
    """Tell whether V^ of text is near its own embeddings, see `NEAR` and `RANK`."""
    return near.cosine >= NEAR and near.rank <= RANK


def verdict(near: Nearness, compared: Control, vocabulary: int, lens: LensKind = "none") -> str:
    """State whether BASIC can lead to words on an LLM, with the figures.

    Its premise holds if V^ is near and the loss of words is the lower one, see `NEAR` and `LOWER`.

    Args:
        near: nearness of V^ of text.
        compared: L_das of words and random vectors as visual tokens.
        vocabulary: V.
        lens: lens through which both were measured.
    """
    close, lower = is_near(near), compared.words <= LOWER * compared.random
    holds = close and lower
    through = "" if lens == "none" else f" through the lens `{lens}`"
    return (
        f"BASIC's premise {'holds' if holds else 'does not hold'} on this LLM{through}: V^ of text is "
        f"{'' if close else 'not '}near its own embedding ({_figures(near, vocabulary)}), "
        f"{'and' if close == lower else 'but'} L_das of words is {'' if lower else 'not '}clearly below that of random "
        f"vectors ({compared.words:.2f} and {compared.random:.2f}): the loss {'can' if holds else 'cannot'} lead to "
        "words."
    )


def _figures(near: Nearness, vocabulary: int) -> str:
    cosine = round(near.cosine, 2) + 0.0  # turns -0.0 into 0.0
    return f"cosine {cosine:+.2f}, the nearest for {near.own:.0%}, median rank {near.rank:,.0f} of {vocabulary:,}"


def _read(path: Path) -> Nearness | None:
    found = read_checked(path)
    return None if found is None else Nearness(**{name: float(value) for name, value in found.items()})


def _write(found: Nearness, path: Path) -> None:
    # As text, because the figures of a broken LLM are NaN, which is no JSON.
    path.write_bytes(with_checksum({name: str(value) for name, value in found._asdict().items()}))

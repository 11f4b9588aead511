"""Measure what visual tokens say through the contextual lens and the nearest input embedding, layer by layer.

Both lenses have the same words and the same hits: the nearest word is one of the photo's own captions, or of another
photo's for comparison. They differ only in whether the LLM has read the word in a sentence.

Shapes: P photos of m visual tokens, I images of a batch, l decoder layers, W words.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypedDict, cast

import numpy as np
import numpy.typing as npt
import torch

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Advance
from sea_pipeline.inputs.captions import as_said, content_words, singular
from trainer.evaluation.contextual_lens import Index, nearest_states, unit
from trainer.evaluation.evaluator import Evaluator, ShownImage, evaluating
from trainer.evaluation.nearest_by_layer import Frequent, most_frequent, watch_visual
from trainer.evaluation.token_replacement import answer_text
from trainer.measures.blind_control import mean_over_photos, places_of_others
from trainer.model.aligned_llava import AlignedLlava, Batch

LENSES = ("contextual", "word")
"""`contextual` compares with all states of an index, `word` with its input embeddings alone."""


class LensLayer(TypedDict, total=False):
    """What a layer's visual tokens are nearest to.

    In addition to these keys each of the lenses `contextual` and `word` has shares of all visual tokens, 0..1.
    `LENS_share` is the share whose nearest word is in the photo's own captions, `LENS_share_other` the same with
    another photo's captions, and `LENS_gain` their difference. With labels there are `LENS_label_share` and so on, for
    which a photo's words are the best labels of its patches. Each has its standard error over photos as `_se`. A value
    that needs two photos is absent with fewer.
    """

    layer: int
    matched_layer: float
    """Median of the index layers of the nearest states."""
    matched: dict[str, float]
    """Share of the nearest states that belong to each layer of the index."""
    frequent: list[Frequent]
    """The words that are nearest most often, at most `FREQUENT` of them."""


class Lens(NamedTuple):
    """The result of `look_through`."""

    words: torch.Tensor
    """int32 (l + 1, P, m): the nearest words by the contextual lens, as positions in the index's words."""
    own: npt.NDArray[np.bool_]
    """(P, W): whether a word is in a photo's own captions."""
    summary: list[LensLayer]


def captioned_photos(evaluator: Evaluator, limit: int | None = None) -> dict[ShownImage, set[str]]:
    """Collect the photos of the evaluator's data at their first appearance, with the content words said of them.

    A photo's captions are the trained texts of all samples that show it. A photo without a content word is skipped.

    Args:
        evaluator: the evaluator with the samples.
        limit: most photos; None takes all.

    Raises:
        UserError: no photo has a content word.
    """
    said: dict[str, set[str]] = {}
    first: dict[str, ShownImage] = {}
    for row in range(len(evaluator.data)):
        if images := evaluator.data.rows[row]["images"]:
            words = content_words(answer_text(evaluator, row))
            for image in images:
                first.setdefault(image, ShownImage(row, image))
                said.setdefault(image, set()).update(words)
    found = {shown: said[image] for image, shown in first.items() if said[image]}
    if not found:
        raise UserError(
            f"--lens: compares with the words of photos' captions; found no photo with one in {len(evaluator.data):,} "
            "samples; give other --data"
        )
    return dict(islice(found.items(), limit))


def look_through(
    evaluator: Evaluator,
    model: AlignedLlava,
    index: Index,
    photos: Mapping[ShownImage, set[str]],
    advance: Advance = lambda _: None,
) -> Lens:
    """Look at photos through both lenses.

    A photo is read with the text in front of it at its first appearance.

    Args:
        evaluator: the evaluator with the samples and, for shares of labels, the labels.
        model: the model that the index was built with; its mode is restored afterwards.
        index: see `build_index`.
        photos: see `captioned_photos`.
        advance: called with the number of photos done.

    Raises:
        UserError: a state is not finite.
    """
    wanted, found = set(photos), []
    with evaluating(model):
        for batch in evaluator.batches(model.device, list(dict.fromkeys(row for row, _ in photos))):
            chosen = evaluator.places(batch, wanted)
            found.append(_nearest(model, batch, index)[:, :, chosen])
            advance(len(chosen))
    nearest = torch.cat(found, 2)
    words = index.word[nearest]
    truths = {"": _owned(index.words, list(photos.values()))}
    if evaluator.labelled:
        labels = (row[:, 0].tolist() for row in evaluator.words(photos))
        best = [{as_said(evaluator.word(word)) for word in row if word >= 0} for row in labels]
        truths["label_"] = _owned(index.words, best)
    other = places_of_others([image for _, image in photos])
    summary = []
    for number in range(words.shape[1]):
        told = _matched(number, index.layer[nearest[0, number]], words[0, number], index.words)
        for lens, one in zip(
            LENSES, words[:, number].numpy(), strict=False
        ):  # without input embeddings there is only the first
            for kind, own in truths.items():
                told |= cast("LensLayer", dict(_shares(f"{lens}_{kind}", one, own, other)))
        summary.append(told)
    return Lens(words[0].int(), truths[""], summary)


def _nearest(model: AlignedLlava, batch: Batch, index: Index) -> torch.Tensor:
    """Find the nearest state among all, and among the input embeddings if there are any.

    The result is int64 (1 or 2, l + 1, I, m).
    """
    found: list[torch.Tensor] = []
    tables = [index.states, *([index.states[: index.embeddings]] if index.embeddings else [])]

    def look(_layer: int, visual: torch.Tensor) -> None:
        queries = unit(visual)
        found.append(torch.stack([nearest_states(queries, table).cpu() for table in tables]))

    watch_visual(model, batch, look, "--lens")
    stacked = torch.stack(found, 1)
    return stacked.view(*stacked.shape[:2], len(batch["pixel_values"]), -1)


def _owned(words: Sequence[str], own: Sequence[set[str]]) -> npt.NDArray[np.bool_]:
    """Mark the words that are among each photo's own, bool (photos, W).

    A plural and its singular count as one word.
    """
    every = {*words}.union(*own)
    base = {word: singular(word, every) or word for word in every}
    columns: dict[str, list[int]] = {}
    for number, word in enumerate(words):
        columns.setdefault(base[word], []).append(number)
    found = np.zeros((len(own), len(words)), bool)
    for row, said in zip(found, own, strict=True):
        row[[number for word in said for number in columns.get(base[word], ())]] = True
    return found


def _matched(number: int, layers: torch.Tensor, nearest: torch.Tensor, words: Sequence[str]) -> LensLayer:
    """Count the index layers and the words of the states nearest to a layer."""
    which, hits = layers.unique(return_counts=True)
    return LensLayer(
        layer=number,
        matched_layer=float(np.median(layers.numpy())),
        matched={str(layer): hit / layers.numel() for layer, hit in zip(which.tolist(), hits.tolist(), strict=True)},
        frequent=most_frequent(nearest, words),
    )


def _shares(
    name: str, nearest: npt.NDArray[np.int64], own: npt.NDArray[np.bool_], other: Sequence[int]
) -> Iterator[tuple[str, float]]:
    """Yield the share, the other photos' share and the gain, each with its standard error.

    Args:
        name: prefix of the names.
        nearest: (P, m), the nearest words.
        own: (P, W), see `_owned`.
        other: for each photo the number of the photo to compare with; empty if there is none.
    """
    photos = [str(number) for number in range(len(nearest))]

    def hits(truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        counted: npt.NDArray[np.int64] = np.take_along_axis(truth, nearest, 1).sum(1)
        return counted

    mine = hits(own)
    counted = {"share": mine}
    if other:
        theirs = hits(own[other])
        counted |= {"share_other": theirs, "gain": mine - theirs}
    for what, sums in counted.items():
        yield from mean_over_photos(sums, [nearest.shape[1]] * len(photos), photos).named(f"{name}{what}")

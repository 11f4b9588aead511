"""Measure how much the right photo lowers L_lm, compared with another photo's visual tokens (the blind control).

A model that does not look at the photo loses nothing if it is shown another one. P: photos, T: trained tokens.
"""

import hashlib
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, cast

import datasets
import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset as Rows
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from sea_pipeline.core.progress import without_progress_bars
from sea_pipeline.inputs.captions import content_spans, without_last_word
from trainer.data.bad_rows import image_names
from trainer.data.dataset import TrainingData
from trainer.model.aligned_llava import Batch


def by_sample(batch: Batch, nats: torch.Tensor) -> list[npt.NDArray[np.float64]]:
    """Split the losses of a batch's trained tokens by sample, into B arrays (T,)."""
    sample = (batch["predict"] // batch["input_ids"].shape[1]).cpu().numpy()
    values = nats.double().cpu().numpy()
    return [values[sample == number] for number in range(len(batch["rows"]))]


class Mean(NamedTuple):
    """A mean over tokens, with its standard error over photos."""

    value: float
    error: float | None
    """None for fewer than two photos."""

    def named(self, name: str) -> Iterator[tuple[str, float]]:
        """Yield the mean under a name, and its error, if there is one, as `NAME_se`."""
        yield name, self.value
        if self.error is not None:
            yield f"{name}_se", self.error


def others(images: Iterable[str]) -> dict[str, str]:
    """Assign another photo to each photo, so that each is used once.

    It is the next one in the order of the ids' hashes, so the order of the data does not matter. The result is empty
    for fewer than two photos.
    """
    ordered = sorted(set(images), key=lambda image: hashlib.sha256(image.encode()).digest())
    return dict(zip(ordered, [*ordered[1:], *ordered[:1]], strict=True)) if len(ordered) > 1 else {}


def places_of_others(images: Sequence[str]) -> list[int]:
    """Return for each image the place of the photo that `others` assigns to it; nothing for fewer than two photos."""
    place, swap = {image: number for number, image in enumerate(images)}, others(images)
    return [place[swap[image]] for image in images] if swap else []


def one_spelling(rows: Rows) -> Rows:
    """Give each photo of rows one name, if it has several, such as `a.jpg` and `./a.jpg`.

    The name is the shortest form of the path if it is one of them, because labels of a folder have it.
    """
    names = sorted(image_names(rows))
    short = {name: posixpath.normpath(name) for name in names}
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(short[name], short[name] if short[name] in short else name)
    if len(first) == len(names):
        return rows

    def spelled(row: dict[str, Any]) -> dict[str, Any]:
        return {"images": [first[short[name]] for name in row["images"]]}

    with without_progress_bars(datasets):
        return rows.map(spelled, keep_in_memory=True, load_from_cache_file=False)


def with_other_photos(data: TrainingData, other: Mapping[str, str]) -> TrainingData:
    """Return the same samples with other photos.

    The texts stay; `other` maps each photo to the one that replaces it.
    """
    shown = copy(data)
    shown.rows = cast("Any", _OtherPhotos(data.rows, other))
    return shown


class _OtherPhotos:
    """Replace the images of rows."""

    def __init__(self, rows: Any, other: Mapping[str, str]) -> None:  # noqa: ANN401 - datasets'
        self._rows, self._other = rows, other

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        row = self._rows[position]
        return {**row, "images": [self._other[image] for image in row["images"]]}


def mean_over_photos(sums: npt.ArrayLike, tokens: npt.ArrayLike, photos: Sequence[str]) -> Mean:
    """Compute the mean over tokens, and its standard error as a ratio of two sums over photos.

    With d_p and n_p the sums and tokens of photo p, and G = sum d_p / sum n_p, the error is
    sqrt(P / (P - 1) * sum (d_p - G * n_p)^2) / sum n_p. The sums are over photos because tokens of one photo are not
    independent.

    Args:
        sums: float (samples,), summed over a sample's tokens.
        tokens: int (samples,), number of tokens of each sample.
        photos: the photo of each sample; samples that share a photo count as one.
    """
    d, n = np.asarray(sums, float), np.asarray(tokens, float)
    value = d.sum() / n.sum()
    counted = n > 0
    # (d_i - G * n_i) / sum n, the part of each sample in the deviation; the parts sum to 0.
    parts = (d - value * n) / n.sum()
    return Mean(float(value), standard_error(parts[counted], np.asarray(photos, str)[counted]))


def standard_error(parts: npt.ArrayLike, photos: npt.ArrayLike) -> float | None:
    """Compute the standard error of a mean from each observation's part in its deviation, clustered by photo.

    It is sqrt(P / (P - 1) * sum over photos of (sum of a photo's parts)^2), or None for fewer than two photos.

    Args:
        parts: float (observations,), which sum to 0.
        photos: the photo of each observation.
    """
    names, position = np.unique(np.asarray(photos, str), return_inverse=True)
    # One sum per photo: parts of one photo are not independent, photos are.
    by_photo = np.bincount(position, np.asarray(parts, float), len(names))
    count = len(names)
    return float(np.sqrt(count / (count - 1) * np.square(by_photo).sum())) if count > 1 else None


def content_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], trained: Sequence[bool], *, cut: bool = False
) -> npt.NDArray[np.bool_]:
    """Mark the trained tokens that are a content word or part of one, by the rules of `captions.py`, bool (T,).

    Args:
        tokenizer: a fast tokenizer.
        ids: token ids of a sample.
        trained: whether each of them is trained; each run of trained tokens is a text of its own.
        cut: whether the sample went on after these ids; the word that they end in is left out, for it may be half of
            one.
    """
    special = set(tokenizer.all_special_ids)
    found: list[bool] = []
    seen = 0
    kinds = ((token, is_trained, token in special) for token, is_trained in zip(ids, trained, strict=True))
    for (is_trained, is_special), run in groupby(kinds, key=itemgetter(1, 2)):
        tokens = [token for token, *_ in run]
        seen += len(tokens)
        if is_trained:
            ends = cut and seen == len(ids)
            found += [False] * len(tokens) if is_special else _of_content(tokenizer, tokens, cut=ends)
    return np.array(found, bool)


def _of_content(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, cut: bool) -> list[bool]:
    """Mark the tokens of a text that belong to its content words."""
    backend = cast("Any", tokenizer).backend_tokenizer
    stream, text, ranges, waiting = DecodeStream(skip_special_tokens=False), "", [], 0
    for token in ids:
        waiting += 1
        if (piece := stream.step(backend, token)) is not None:  # a character may need several tokens
            ranges += [(len(text), len(text) + len(piece))] * waiting
            text, waiting = text + piece, 0
    ranges += [(len(text), len(text))] * waiting
    spans = content_spans(without_last_word(text) if cut else text)
    return [any(start < stop and begin < end for begin, stop in spans) for start, end in ranges]


class _SampleLosses(NamedTuple):
    """The numbers that the metrics need of a sample.

    Losses are in nats, summed over its trained tokens or over those of content words.
    """

    photo: str
    shown: bool
    """Whether it has a photo."""
    tokens: int
    own: float
    other: float
    content_tokens: int
    own_content: float
    other_content: float


class Controls:
    """Collect the losses of samples with their own and with other photos, and compute metrics from them."""

    def __init__(self) -> None:
        self._samples: list[_SampleLosses] = []

    def add(
        self,
        number: int,
        images: Sequence[str],
        content: npt.NDArray[np.bool_],
        own: npt.NDArray[Any],
        other: npt.NDArray[Any] | None,
    ) -> None:
        """Add a sample.

        Args:
            number: number of the sample.
            images: the sample's photos. A sample without photos counts only for the losses with own photos.
            content: (T,), see `content_tokens`.
            own: losses with its own photos, (T,), in nats.
            other: losses with another photo, (T,), in nats; None if the sample has no photos.
        """
        photo = "\n".join(images) or f"\n{number}"  # a text without a photo is a cluster of its own
        shown = own if other is None else other
        sums = (float(own[content].sum()), float(shown[content].sum()))
        self._samples.append(
            _SampleLosses(
                photo, other is not None, len(own), float(own.sum()), float(shown.sum()), int(content.sum()), *sums
            )
        )

    def join(self, others: "Controls", part: int) -> None:
        """Add what another process has collected.

        `part` is that process's number, which keeps its samples without photos apart from ours.
        """
        self._samples += [
            sample._replace(photo=f"{sample.photo}\n{part}") if sample.photo.startswith("\n") else sample
            for sample in others._samples
        ]

    def metrics(self) -> Iterator[tuple[str, float]]:
        """Yield the metrics by name, see `Evaluator`.

        Each metric but the count is followed by its `_se`.
        """
        everything = [sample for sample in self._samples if sample.tokens]
        shown = [sample for sample in everything if sample.shown]
        if not everything:
            return
        yield "trained_tokens", float(sum(sample.tokens for sample in everything))
        yield from _mean("lm_loss", everything, lambda each: (each.own, each.tokens))
        yield from _mean("lm_loss_content", everything, lambda each: (each.own_content, each.content_tokens))
        yield from _mean("lm_loss_other", shown, lambda each: (each.other, each.tokens))
        yield from _mean("right_photo_gain", shown, lambda each: (each.other - each.own, each.tokens))
        yield from _mean(
            "right_photo_gain_content", shown, lambda each: (each.other_content - each.own_content, each.content_tokens)
        )


def _mean(
    name: str, samples: Sequence[_SampleLosses], of: Callable[[_SampleLosses], tuple[float, int]]
) -> Iterator[tuple[str, float]]:
    sums, tokens = zip(*map(of, samples), strict=True) if samples else ((), ())
    if sum(tokens):
        yield from mean_over_photos(sums, tokens, [sample.photo for sample in samples]).named(name)

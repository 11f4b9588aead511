"""Which encoder, path and sign puts the words of a caption on its image: `sea-pipeline probe`, and `label`'s hint.

N images, V entries of the word list that their captions name, W words, D embedding width; B images of a batch, P
patches, n labels a patch.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sea_pipeline.captions import Forms, content_words, gpt_turns, in_list, phrases
from sea_pipeline.encoders import Encoder, EncoderSpec
from sea_pipeline.encoders.base import finite_images
from sea_pipeline.lift import Coverage, Flags, Held, Probed, lift
from sea_pipeline.llava_json import images_of, naming, records
from sea_pipeline.pixels import BadImageError, decode_image
from sea_pipeline.samples import Listing, Sample
from sea_pipeline.search import WordSearch
from sea_pipeline.sources import open_source
from sea_pipeline.wordlists import WordList

MOST_FREQUENT = 10
HINT_LEAST, HINT_MOST = 16, 32
"""Captioned images that the hint needs, and those that it looks at."""
_BATCH = 8


class Captioned(NamedTuple):
    """An image and all that the file says of it."""

    sample: Sample
    captions: list[str]


def captioned_images(path: Path, samples: Iterable[Sample], limit: int, seed: int) -> list[Captioned]:
    """Some of the images that a LLaVA file has captions of, by a hash of (seed, image id), sorted by id.

    Which ones does not depend on the order of the records, and few of them change when some are added. A caption is a
    gpt turn of a record with one image; those of several images do not say which one they mean.

    Args:
        path: the file, read once.
        samples: the images that can be taken.
        limit: how many at most.
        seed: another seed, other images.
    """
    known = {sample.image_id: sample for sample in samples if sample.problem is None}
    chosen: dict[str, list[str]] = {}
    ranks: list[tuple[bytes, str]] = []
    for number, row in records(path):
        with naming(path, number):
            images, captions = images_of(row), gpt_turns(row)
        image = images[0] if len(images) == 1 and isinstance(images[0], str) else ""
        if image in chosen:
            chosen[image] += captions
        elif image in known and captions:
            rank = hashlib.sha256(f"{seed} {image}".encode()).digest(), image
            if len(ranks) < limit:
                heapq.heappush(ranks, rank)
            elif rank > ranks[0]:
                del chosen[heapq.heapreplace(ranks, rank)[1]]
            else:
                continue
            chosen[image] = captions
    return [Captioned(known[image], chosen[image]) for image in sorted(chosen)]


@dataclass(frozen=True, eq=False)
class Named:
    """Which entries of a word list the captions of N images name."""

    word_ids: npt.NDArray[np.int64]
    """(V,), ascending."""
    flags: Flags
    """(N, V)."""


def named_entries(captions: Sequence[Sequence[str]], words: WordList) -> Named:
    """The content words and phrases of each image's captions that a word list has, by the rules of `captions.py`."""
    ids = {word.lower(): number for number, word in reversed(list(enumerate(words.words)))}
    found: list[set[int]] = []
    for texts in captions:
        single = {word for text in texts for word in content_words(text)}
        entries = single | {phrase for text in texts for phrase in phrases(text)}
        found.append({ids[name] for entry in entries if (name := in_list(entry, ids)) is not None})
    word_ids = np.array(sorted(set().union(*found)), np.int64)
    flags = np.zeros((len(captions), len(word_ids)), np.bool_)
    for image, own in enumerate(found):
        flags[image] = np.isin(word_ids, list(own))
    return Named(word_ids, flags)


def coverage(captions: Sequence[Sequence[str]], words: WordList) -> Coverage:
    """How a word list has the content words of captions: as they stand, else in another form alone, else not at all.

    It is finer than what `lift` counts: `named_entries` takes plurals for their singulars, and no other form.
    """
    forms = Forms(words.words)
    spoken = Counter(word for texts in captions for text in texts for word in content_words(text))
    frequent = sorted(spoken, key=lambda word: (-spoken[word], word))
    kinds = (
        [word for word in frequent if forms.has(word)],
        [word for word in frequent if not forms.has(word) and forms.has_other(word)],
        [word for word in frequent if not forms.has(word) and not forms.has_other(word)],
    )
    return Coverage(
        Held(*map(len, kinds)),
        Held(*(sum(spoken[word] for word in kind) for kind in kinds)),
        inflected=tuple(kinds[1]),
        absent=tuple(kinds[2]),
    )


def probe(
    encoder: Encoder,
    embeddings: torch.Tensor,
    words: WordList,
    named: Named,
    pixels: Iterable[tuple[int, npt.NDArray[Any]]],
    *,
    spec: str,
    top_n: int,
    device: str,
    seed: int = 0,
) -> list[Probed]:
    """Both signs of one encoder and path, + first, from one pass over the images; nothing of less than two images.

    The labels are those that `label` gives: the n best words of each patch by s = sign * cos, without those of s < 0.
    Memory is that of one batch and (N, V) flags for each sign.

    Args:
        encoder: its own sign does not matter.
        embeddings: of the word list, float32 (W, D).
        words: the list.
        named: what captions name.
        pixels: images as the encoder takes them, with their places in `named`; those that are not there do not count.
        spec: the encoder's, with its path.
        top_n: n.
        device: where words are searched.
        seed: of the interval.
    """
    tallies = [
        _Tally(sign, WordSearch(embeddings, top_n=top_n, sign=sign, device=device), named, len(words))
        for sign in (1, -1)
    ]
    seen: list[int] = []
    pixels = iter(pixels)
    while batch := list(islice(pixels, _BATCH)):
        vectors = encoder.patches(torch.from_numpy(np.stack([values for _, values in batch])))
        finite = finite_images(encoder, vectors)
        images = [image for (image, _), good in zip(batch, finite, strict=True) if good]
        for tally in tallies:
            tally.add(images, vectors[finite])
        seen += images
    return [tally.result(words, seen, spec, seed) for tally in tallies] if len(seen) > 1 else []


class _Tally:
    """What the labels of one sign hold, image by image."""

    def __init__(self, sign: int, search: WordSearch, named: Named, words: int) -> None:
        self._sign = sign
        self._search = search
        self._named = named
        self._labelled = np.zeros_like(named.flags)
        self._uses = np.zeros(words, np.int64)
        self._slots = 0

    def add(self, images: Sequence[int], vectors: torch.Tensor) -> None:
        """Counts the labels of a batch: places in `Named`, and float32 (B, P, D)."""
        found = self._search(vectors.flatten(0, 1))[0].numpy()
        self._slots += found.size
        for image, labels in zip(images, np.split(found, len(images)) if images else [], strict=True):
            uses = np.bincount(labels[labels >= 0], minlength=len(self._uses))
            self._labelled[image] = uses[self._named.word_ids] > 0
            self._uses += uses

    def result(self, words: WordList, images: list[int], spec: str, seed: int) -> Probed:
        """The figures over some of the images."""
        images = sorted(images)
        frequent = [int(word) for word in np.argsort(-self._uses, kind="stable")[:MOST_FREQUENT] if self._uses[word]]
        return Probed(
            spec=spec,
            sign=self._sign,
            images=len(images),
            lift=lift(self._labelled[images], self._named.flags[images], seed),
            dropped=1 - int(self._uses.sum()) / self._slots,
            used=float((self._uses > 0).mean()),
            frequent=tuple((words.words[word], int(self._uses[word])) for word in frequent),
        )


def signed(spec: str, sign: int | None) -> str:
    """A spec with a path and that sign, None for the path's own; the spec of an encoder without paths as it is."""
    parsed = EncoderSpec.parse(spec)
    return str(replace(parsed, sign=sign)) if parsed.path else spec


def prepared(
    encoder: Encoder, images: Sequence[Captioned], root: str, advance: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """The images that can be read, as the encoder takes them, with their places; the others are passed over."""
    source = open_source(root)
    for place, image in enumerate(images):
        advance(1)
        try:
            values = encoder.preprocess(decode_image(source.read(image.sample.uri)).image).values
        except (BadImageError, OSError):
            continue
        yield place, values


def hint(
    encoder: Encoder, embeddings: torch.Tensor, words: WordList, path: Path, listing: Listing, top_n: int, device: str
) -> str | None:
    """One line where captioned images say clearly that the encoder's other sign is the better one; else None.

    Costs reading the file once more, decoding and encoding `HINT_MOST` images at most, and searching with both signs;
    nothing where the captions are of less than `HINT_LEAST` images. See `probe`.
    """
    images = captioned_images(path, listing.samples, HINT_MOST, seed=0)
    named = named_entries([image.captions for image in images], words)
    pixels = list(prepared(encoder, images, listing.root)) if len(images) >= HINT_LEAST else []
    if len(pixels) < HINT_LEAST or not len(named.word_ids):
        return None
    found = probe(encoder, embeddings, words, named, pixels, spec=encoder.spec, top_n=top_n, device=device)
    if not found:
        return None
    ours, other = found if encoder.sign > 0 else found[::-1]
    if not other.lift.clearly_above(ours.lift):
        return None
    wrong, right = (
        f"{'+-'[one.sign < 0]} hold {one.lift.hit:.0%} ({one.lift.chance:.0%} by chance)" for one in (ours, other)
    )
    return (
        f"of the words in the captions of {ours.images} images, labels of sign {wrong}, labels of sign {right}, which "
        f"is clearly better; label with --encoder {signed(encoder.spec, other.sign)}, or look closer with "
        "sea-pipeline probe"
    )

"""Find images with captions in a LLaVA file, and the entries of a word list that the captions name."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sea_pipeline.inputs.captions import Forms, content_words, gpt_turns, ids_as_said, in_list, phrases
from sea_pipeline.inputs.llava_json import readable_records
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.inputs.wordlists import WordList
from sea_pipeline.labels.caption_lift import Coverage, Flags, FormCounts


class CaptionedImage(NamedTuple):
    """An image and all its captions in the file."""

    sample: Sample
    captions: list[str]


def captioned_images(path: Path, samples: Iterable[Sample], limit: int, seed: int) -> list[CaptionedImage]:
    """Choose images that a LLaVA file has captions of, by a hash of (seed, image id), sorted by id.

    The choice does not depend on the order of the records, and changes little when records are added. A caption is a
    gpt turn of a record with one image. Records of several images do not say which one they mean.

    Args:
        path: the file, read once.
        samples: the images to choose from.
        limit: the largest number of images.
        seed: another seed chooses other images.
    """
    known = {sample.image_id: sample for sample in samples if sample.problem is None}
    chosen: dict[str, list[str]] = {}
    # A heap of the `limit` highest hashes so far, whose lowest gives way to a higher one.
    ranks: list[tuple[bytes, str]] = []
    for images, row in readable_records(path):
        captions = gpt_turns(row)
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
    return [CaptionedImage(known[image], chosen[image]) for image in sorted(chosen)]


@dataclass(frozen=True, eq=False)
class CaptionEntries:
    """The entries of a word list that the captions of N images name."""

    word_ids: npt.NDArray[np.int64]
    """(V,) positions in the word list, ascending."""
    flags: Flags
    """(N, V), true if the image's captions name the entry."""


def named_entries(captions: Sequence[Sequence[str]], words: WordList) -> CaptionEntries:
    """Find the content words and phrases of each image's captions in a word list.

    It follows the rules of `captions.py`.
    """
    ids = ids_as_said(words.words)
    found: list[set[int]] = []
    for texts in captions:
        single = {word for text in texts for word in content_words(text)}
        entries = single | {phrase for text in texts for phrase in phrases(text)}
        found.append({ids[name] for entry in entries if (name := in_list(entry, ids)) is not None})
    word_ids = np.array(sorted(set().union(*found)), np.int64)
    flags = np.zeros((len(captions), len(word_ids)), np.bool_)
    for image, own in enumerate(found):
        flags[image] = np.isin(word_ids, list(own))
    return CaptionEntries(word_ids, flags)


def coverage(captions: Sequence[Sequence[str]], words: WordList) -> Coverage:
    """Count the content words of captions that a word list has as they are, only in another form, or not at all.

    It is finer than what `hit_rate_gain` counts, because `named_entries` takes plurals for their singulars and no
    other form.
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
        FormCounts(*map(len, kinds)),
        FormCounts(*(sum(spoken[word] for word in kind) for kind in kinds)),
        inflected=tuple(kinds[1]),
        absent=tuple(kinds[2]),
    )

"""What word lists say of photos: `python -m tests.bench.word_lists CAPTIONS LABELS [LABELS ...]`

CAPTIONS is LLaVA's JSON with captions, each LABELS a folder of `sea-pipeline label` of its images, with a list of its
own. `sea-pipeline probe` leaves out the words that a list lacks. Here every content word of the captions counts for
every list, so that lists can be compared: a word that a list lacks is never found. The second row of a folder takes a
label such as "black dog" for each of its words, too.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from sea_pipeline import open_labels
from sea_pipeline.inputs.captions import content_words, ids_as_said, in_list
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.inputs.wordlists import WordList
from sea_pipeline.labels.caption_lift import Coverage, Flags, HitRateGain, hit_rate_gain
from sea_pipeline.labels.captioned_images import captioned_images, coverage
from sea_pipeline.labels.store import LabelStore
from tests.bench.measure import machine


class Row(NamedTuple):
    """What the labels of one folder hold of the captions."""

    own: float
    """Share of (photo, content word of its captions) whose word is a label of some patch of the photo."""
    other: float
    """The same with the captions of the next photo by name, the control."""
    lift: HitRateGain
    """As `probe` has it: `own` beside the mean over all shuffles of the captions."""


def main() -> None:
    """Prints two rows for each folder: labels as they are, and phrases taken for their words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("captions", type=Path)
    parser.add_argument("labels", nargs="+")
    given = parser.parse_args()
    stores = [open_labels(folder) for folder in given.labels]
    images, captions = captioned(given.captions, stores)
    table = Table(title=f"{len(images):,} photos; {machine()}")
    for heading in ("labels", "words", "as they stand", "other form", "own", "another's", "lift", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "labels" else "right")
    for folder, store in zip(given.labels, stores, strict=True):
        held = coverage(captions, WordList(folder, store.words))
        table.add_row(folder, f"{len(store.words):,}", *_shares(held), *_figures(row(store, images, captions, False)))
        table.add_row("  phrases, too", "", "", "", *_figures(row(store, images, captions, True)))
    Console().print(table)


def captioned(path: Path, stores: Sequence[LabelStore]) -> tuple[list[str], list[list[str]]]:
    """The images that all folders hold and that have captions, by name, and their captions."""
    shared = sorted(set.intersection(*(set(store.ids) for store in stores)))
    found = captioned_images(path, [Sample(image, image) for image in shared], len(shared), seed=0)
    return [one.sample.image_id for one in found], [one.captions for one in found]


def row(store: LabelStore, images: Sequence[str], captions: Sequence[Sequence[str]], phrases: bool) -> Row:
    """The figures of one folder, over every content word of the captions.

    Args:
        store: its labels.
        images: that it holds.
        captions: of each of them.
        phrases: whether a label of several words stands for each of them.
    """
    spoken = [{word for text in texts for word in content_words(text)} for texts in captions]
    words = sorted(set().union(*spoken))
    named = np.array([[word in own for word in words] for own in spoken])
    naming = _naming(store.words, words, phrases)
    labelled = np.zeros_like(named)
    for place, image in enumerate(images):
        held = set(np.unique(store[image].word_ids).tolist())
        labelled[place] = [not ids.isdisjoint(held) for ids in naming]
    return Row(
        _hit(labelled, named), _hit(labelled, np.roll(named, -1, axis=0)), hit_rate_gain(labelled, named, seed=0)
    )


def _naming(listed: Sequence[str], words: Sequence[str], phrases: bool) -> list[set[int]]:
    """Which entries of a list name each word: itself or its singular, as for `probe`, and phrases that hold it."""
    ids = ids_as_said(listed)
    holding: dict[str, set[int]] = defaultdict(set)
    for entry, number in ids.items():
        for name in {entry, *(entry.split() if phrases else ())}:
            holding[name].add(number)
    return [set().union(*(holding.get(name, set()) for name in (word, in_list(word, ids) or word))) for word in words]


def _hit(labelled: Flags, named: Flags) -> float:
    return float(labelled[named].mean())


def _shares(held: Coverage) -> tuple[str, str]:
    counts = held.occurrences
    return f"{counts.as_they_stand / counts.total:.1%}", f"{counts.other_form / counts.total:.1%}"


def _figures(found: Row) -> tuple[str, ...]:
    gained = found.lift
    return f"{found.own:.1%}", f"{found.other:.1%}", f"{gained.gain:+.1%}", f"{gained.low:+.1%} to {gained.high:+.1%}"


if __name__ == "__main__":
    main()

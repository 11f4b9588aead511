"""Count labels from their shards, without a model or torch, with one row group in memory at a time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sea_pipeline.core.progress import Advance
from sea_pipeline.labels.format import label_arrays
from sea_pipeline.labels.store import Labels, LabelStore

BIN_WIDTH = 0.05
MOST_FREQUENT = 15

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """The figures of a run's labels, as in SEA's Figure 6 and section 5.1."""

    images: int
    """The number of images, with their labelled crops."""
    crops: int
    patches: int
    labelled_patches: int
    """The number of patches with at least one label."""
    labels: int
    word_uses: Counts
    """(words,): the number of labels that each word is."""
    best_uses: Counts
    """(words,): the number of patches whose best label each word is."""
    score_bins: Counts
    """Counts of labels by score s in steps of `BIN_WIDTH` from 0 to 1, which is the histogram of Figure 6a."""
    mean_similarity: npt.NDArray[np.float32]
    """(words,): mean s over all patches, labels or not, which is the distribution of Figure 6b."""

    @property
    def words_used(self) -> int:
        """Count the words that are a label of some patch, the paper's "utilization"."""
        return int((self.word_uses > 0).sum())

    @property
    def share_used(self) -> float:
        """Return `words_used` as a share of the list (61.2 % in the paper)."""
        return self.words_used / len(self.word_uses)

    @property
    def share_below_zero(self) -> float:
        """Return the share of the list's words whose mean similarity is below 0 (32.7 % in the paper)."""
        return float((self.mean_similarity < 0).mean())

    def most_frequent(self, most: int = MOST_FREQUENT) -> list[int]:
        """List the words that are a label most often, the most frequent first."""
        return most_used(self.word_uses, most)

    def to_json(self, words: tuple[str, ...], most: int = MOST_FREQUENT) -> dict[str, Any]:
        """Return the figures above, the histogram's edges and the most frequent words for machines."""
        return {
            "images": self.images,
            "crops": self.crops,
            "patches": self.patches,
            "labelled_patches": self.labelled_patches,
            "labels": self.labels,
            "words": len(words),
            "words_used": self.words_used,
            "share_used": self.share_used,
            "share_below_zero": self.share_below_zero,
            "score_histogram": {"bin_width": BIN_WIDTH, "counts": self.score_bins.tolist()},
            "most_frequent": [
                {
                    "word": words[word],
                    "labels": int(self.word_uses[word]),
                    "best": int(self.best_uses[word]),
                }
                for word in self.most_frequent(most)
            ],
        }


def most_used(uses: Counts, most: int) -> list[int]:
    """List the words that are used most often, the most frequent first and the first of equally frequent ones first."""
    return [int(word) for word in np.argsort(-uses, kind="stable")[:most] if uses[word]]


def statistics(store: LabelStore, advance: Advance = lambda _: None) -> Statistics:
    """Count all labels of a run.

    Calls `advance` with the number of images that have passed.
    """
    patches = labelled = 0
    uses = np.zeros(len(store.words), np.int64)
    best_uses = np.zeros(len(store.words), np.int64)
    bins = np.zeros(round(1 / BIN_WIDTH), np.int64)
    for table in store.tables(("words", "scores")):
        word_ids, scores = label_arrays(table, store.top_n)
        there = word_ids >= 0
        best = word_ids[..., 0]  # labels are sorted by score
        patches += best.size
        labelled += int((best >= 0).sum())
        uses += np.bincount(word_ids[there], minlength=len(uses))
        best_uses += np.bincount(best[best >= 0], minlength=len(uses))
        # The last bin includes s = 1.
        steps = np.minimum(scores[there] / BIN_WIDTH, len(bins) - 1).astype(np.int64)
        bins += np.bincount(steps, minlength=len(bins))
        advance(len(table))
    counts = len(store), store.count_crops(), patches, labelled, int(uses.sum())
    return Statistics(*counts, uses, best_uses, bins, store.mean_similarity())


def image_words(labels: Labels, most: int = 10) -> list[tuple[int, float]]:
    """Return the words of one image with the highest score sum over its patches.

    Each item is (word id, sum), best first.
    """
    there = labels.word_ids >= 0
    words, places = np.unique(labels.word_ids[there], return_inverse=True)
    sums = np.bincount(places, weights=labels.scores[there], minlength=len(words))
    order = np.argsort(-sums, kind="stable")[:most]
    return [(int(words[position]), float(sums[position])) for position in order]


def labels_to_json(image_id: str, labels: Labels, words: tuple[str, ...]) -> dict[str, Any]:
    """Return the words and scores of every patch of one image for machines."""
    there = labels.word_ids >= 0
    patches = range(len(there))
    return {
        "image": image_id,
        "grid": labels.grid,
        "crop_box": labels.crop_box,
        "words": [[words[word] for word in labels.word_ids[patch][there[patch]]] for patch in patches],
        "scores": [labels.scores[patch][there[patch]].round(4).astype(float).tolist() for patch in patches],
    }

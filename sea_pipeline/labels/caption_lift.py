"""Measure how much more often than by chance labels name what captions name, without a model or torch.

Shapes: N images, V entries of the word list that captions name, R resamples.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
_ERROR = 0.025
"""The share of resamples beyond either end of a 95 % interval."""
_ENTRIES_AT_A_TIME = 1024


@dataclass(frozen=True)
class HitRateGain:
    """How much more often than by chance labels hold the words of an image's own caption."""

    hit: float
    """Share of the pairs (image, word of its caption) whose word is a label of some patch of the image."""
    chance: float
    """The same share if each word is looked for in the images whose captions lack it."""
    low: float
    high: float
    """The 95 % interval of `gain` over images."""
    not_above: float
    """Share of the resamples of images whose `gain` is 0 or less."""

    @property
    def gain(self) -> float:
        """Return `hit` - `chance`, which is 0 for labels that know nothing of the image."""
        return self.hit - self.chance

    @property
    def ratio(self) -> float:
        """Return `hit` / `chance`: 1 if both are 0, infinity if only `chance` is."""
        if self.hit == self.chance:
            return 1.0
        return self.hit / self.chance if self.chance else float("inf")

    def clearly_above(self, other: "HitRateGain") -> bool:
        """Tell whether this gain is higher than the other and their intervals do not overlap."""
        return self.low > other.high

    def surely_above_chance(self, rows: int) -> bool:
        """Tell whether `gain` is above 0 beyond doubt, though it is one of several rows that may be so by accident.

        If no row of up to 40 knows anything, this holds for any of them about as seldom as `low` > 0 for a single one.
        """
        # The resample that is added is the sample itself. None of 0 or less is enough, however many rows there are.
        return self.not_above == 0 or self.not_above + 1 / RESAMPLES <= _ERROR / rows


@dataclass(frozen=True)
class SignFigures:
    """The figures of one encoder, path and sign on captioned images."""

    spec: str
    """The encoder's spec with its path."""
    sign: int
    images: int
    lift: HitRateGain
    dropped: float
    """Share of the n labels of each patch that are dropped because s < 0 (SEA section 4.1)."""
    used: float
    """Share of the word list that is a label of some patch (61.2 % in the paper, on 2of12 and all of its images)."""
    frequent: tuple[tuple[str, int], ...]
    """The most frequent labels, each with its number of patches."""
    selectable: bool = True
    """Whether `--encoder` can ask for this sign. That of an encoder without paths is fixed."""


@dataclass(frozen=True)
class FormCounts:
    """Counts of caption words by how a word list has them."""

    as_they_stand: int
    other_form: int
    """Only in another inflected form, such as `dogs` if the list has `dog` alone."""
    absent: int

    @property
    def total(self) -> int:
        """Return the number of all words."""
        return self.as_they_stand + self.other_form + self.absent


@dataclass(frozen=True)
class Coverage:
    """The part of the captions' words that a word list has.

    See `captions.py` for content words and forms.
    """

    words: FormCounts
    """Counts of distinct content words."""
    occurrences: FormCounts
    """Counts of the occurrences of content words."""
    inflected: tuple[str, ...]
    """Words that the list has only in another form, most frequent first."""
    absent: tuple[str, ...]
    """Words that the list has in no form, most frequent first."""


@dataclass(frozen=True)
class ProbeFindings:
    """The results of `sea-pipeline probe`."""

    probed: tuple[SignFigures, ...]
    """Both signs of every encoder and path, one after the other."""
    images: int
    """The number of captioned images."""
    top_n: int
    wordlist: str
    listed: int
    """The number of words in the list."""
    coverage: Coverage
    """The coverage of all captions."""

    @property
    def best(self) -> SignFigures | None:
        """Return the selectable result with the largest gain of those that are above chance in spite of their number.

        None if no labels know anything of their images.
        """
        rows = [probed for probed in self.probed if probed.selectable]
        known = [probed for probed in rows if probed.lift.surely_above_chance(len(rows))]
        return max(known, key=lambda probed: probed.lift.gain, default=None)

    def verdicts(self) -> dict[str, int | None]:
        """Return the better sign of each encoder and path, or None if the intervals of the two signs overlap."""
        return {
            ours.spec: ours.sign
            if ours.lift.clearly_above(other.lift)
            else other.sign
            if other.lift.clearly_above(ours.lift)
            else None
            for ours, other in zip(self.probed[::2], self.probed[1::2], strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """Return every figure and the verdicts for machines."""
        rows = [{**asdict(probed), "lift": {**asdict(probed.lift), "lift": probed.lift.gain}} for probed in self.probed]
        best = self.best
        return asdict(self) | {
            "probed": rows,
            "best": {"spec": best.spec, "sign": best.sign} if best else None,
            "better_sign": self.verdicts(),
        }


def hit_rate_gain(labelled: Flags, named: Flags, seed: int, resamples: int = RESAMPLES) -> HitRateGain:
    """Compute hit rate, chance and their difference, with a percentile bootstrap interval over images.

    Chance is the average hit rate over all shuffles of captions among images that leave no caption with its image. In
    them a word is looked for in every other image equally often, so the average is exact and no shuffle is drawn. For a
    word that a captions hold, it is the word's rate among the N - a images whose captions lack it. An image whose
    caption holds the word, too, is left out, because finding the word there is no accident. A word that all captions
    hold has no chance level and counts for neither share.

    Args:
        labelled: (N, V): whether an entry is a label of some patch of an image.
        named: (N, V): whether an image's caption names it.
        seed: of the bootstrap; the same seed draws the same images for every encoder, path and sign.
        resamples: R.
    """
    images = len(named)
    once = np.ones((1, images), np.float32)
    hit, chance = _rates(labelled, named, once)
    # A resample of N images with replacement is a count of each image, (R, N).
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples)
    hits, chances = _rates(labelled, named, drawn.astype(np.float32))
    gains = hits - chances
    # The percentile interval, 95 %.
    low, high = np.quantile(gains, [_ERROR, 1 - _ERROR])
    return HitRateGain(float(hit[0]), float(chance[0]), float(low), float(high), float((gains <= 0).mean()))


def _rates(labelled: Flags, named: Flags, times: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Compute hit rate and chance, (R,) each, with image i occurring `times[r, i]` times.

    Both are 0 if no word has both.
    """
    pairs, hits, chances = np.zeros((3, len(times)))
    total = times.sum(1, dtype=np.float64)[:, None]
    for start in range(0, named.shape[1], _ENTRIES_AT_A_TIME):
        found, holds = (part[:, start : start + _ENTRIES_AT_A_TIME] for part in (labelled, named))
        # (R, v) each: images whose captions hold a word, those of them that are labelled with it, all so labelled.
        holding, both, anywhere = (_counted(times, part) for part in (holds, found & holds, found))
        lacking = total - holding  # N - a
        useful = lacking > 0
        # A word's chance level is its rate among the images whose captions lack it.
        rate = np.divide(anywhere - both, lacking, out=np.zeros_like(both), where=useful)
        # Each pair (image, word of its caption) counts once, with its hit or with its word's chance level.
        pairs += (holding * useful).sum(1)
        hits += (both * useful).sum(1)
        chances += (holding * rate).sum(1)
    some = np.maximum(pairs, 1)
    return hits / some, chances / some


def _counted(times: npt.NDArray[np.float32], flags: Flags) -> npt.NDArray[Any]:
    return (times @ flags.astype(np.float32)).astype(np.float64)  # whole numbers below 2 ** 24: exact

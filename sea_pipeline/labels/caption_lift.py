"""Whether labels name what captions name, beyond chance: counts, chance and an interval. No model, no torch.

Shapes: N images, V entries of the word list that captions name, R resamples.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
_ENTRIES_AT_A_TIME = 1024


@dataclass(frozen=True)
class Lift:
    """How much more often labels hold the words of an image's own caption than chance has it."""

    hit: float
    """Share of (image, word of its caption) whose word is a label of some patch of the image."""
    chance: float
    """The same share where each word is looked for in the images whose captions lack it."""
    low: float
    high: float
    """The 95 % interval of `lift` over images."""

    @property
    def lift(self) -> float:
        """The difference, `hit` less `chance`: 0 for labels that know nothing of the image."""
        return self.hit - self.chance

    @property
    def ratio(self) -> float:
        """Hit / chance; infinite where chance is 0."""
        return self.hit / self.chance if self.chance else float("inf")

    def clearly_above(self, other: "Lift") -> bool:
        """Whether this lift is the higher one and the two intervals do not meet."""
        return self.low > other.high


@dataclass(frozen=True)
class Probed:
    """What one encoder, path and sign gives on captioned images."""

    spec: str
    """The encoder's, with its path."""
    sign: int
    images: int
    lift: Lift
    dropped: float
    """Share of the n labels of each patch that are none, as s < 0 (SEA section 4.1)."""
    used: float
    """Share of the word list that is a label of some patch (61.2 % in the paper, on 2of12 and all of its images)."""
    frequent: tuple[tuple[str, int], ...]
    """The most frequent labels, and of how many patches they are one."""


@dataclass(frozen=True)
class Held:
    """Counts words of captions by how a word list has them."""

    as_they_stand: int
    other_form: int
    """Only in another inflected form: `dogs`, if the list has `dog` alone."""
    absent: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.as_they_stand + self.other_form + self.absent


@dataclass(frozen=True)
class Coverage:
    """How much of what captions say a word list has; see `captions.py` for content words and forms."""

    words: Held
    """Distinct content words."""
    occurrences: Held
    """The same, each as often as it occurs."""
    inflected: tuple[str, ...]
    """Words that the list has only in another form, the most frequent ones first."""
    absent: tuple[str, ...]
    """Words that it has in no form, the most frequent ones first."""


@dataclass(frozen=True)
class Findings:
    """What `sea-pipeline probe` found."""

    probed: tuple[Probed, ...]
    """Of every encoder and path both signs, one after the other."""
    images: int
    """Captioned images that were taken."""
    top_n: int
    wordlist: str
    listed: int
    """Words of the list."""
    coverage: Coverage
    """Of all captions that were taken."""

    @property
    def best(self) -> Probed | None:
        """The largest lift whose interval lies above 0; None where no labels know anything of their images."""
        known = [probed for probed in self.probed if probed.lift.low > 0]
        return max(known, key=lambda probed: probed.lift.lift, default=None)

    def verdicts(self) -> dict[str, int | None]:
        """For every encoder and path its better sign; None where the intervals of the two signs meet."""
        return {
            ours.spec: ours.sign
            if ours.lift.clearly_above(other.lift)
            else other.sign
            if other.lift.clearly_above(ours.lift)
            else None
            for ours, other in zip(self.probed[::2], self.probed[1::2], strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """For machines: every figure, and the verdicts."""
        rows = [{**asdict(probed), "lift": {**asdict(probed.lift), "lift": probed.lift.lift}} for probed in self.probed]
        best = self.best
        return asdict(self) | {
            "probed": rows,
            "best": {"spec": best.spec, "sign": best.sign} if best else None,
            "better_sign": self.verdicts(),
        }


def lift(labelled: Flags, named: Flags, seed: int, resamples: int = RESAMPLES) -> Lift:
    """Hit rate, chance and their difference, with a percentile bootstrap interval over images.

    Chance is what captions shuffled among images give, on average over all shuffles that leave no caption with its
    image. There a word is looked for in every other image equally often, so the average is exact and no shuffle is
    drawn: for a word that a captions hold, its rate among the N - a images whose captions lack it. An image whose
    caption holds the word, too, is left out: that the word is found there is no accident. A word that all captions
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
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples)
    hits, chances = _rates(labelled, named, drawn.astype(np.float32))
    low, high = np.quantile(hits - chances, [0.025, 0.975])
    return Lift(float(hit[0]), float(chance[0]), float(low), float(high))


def _rates(labelled: Flags, named: Flags, times: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Hit rate and chance, (R,) each, where image i is there `times[r, i]` times; 0 where no word has both."""
    pairs, hits, chances = np.zeros((3, len(times)))
    total = times.sum(1, dtype=np.float64)[:, None]
    for start in range(0, named.shape[1], _ENTRIES_AT_A_TIME):
        found, holds = (part[:, start : start + _ENTRIES_AT_A_TIME] for part in (labelled, named))
        holding, both, anywhere = (_counted(times, part) for part in (holds, found & holds, found))
        lacking = total - holding
        useful = lacking > 0
        rate = np.divide(anywhere - both, lacking, out=np.zeros_like(both), where=useful)
        pairs += (holding * useful).sum(1)
        hits += (both * useful).sum(1)
        chances += (holding * rate).sum(1)
    some = np.maximum(pairs, 1)
    return hits / some, chances / some


def _counted(times: npt.NDArray[np.float32], flags: Flags) -> npt.NDArray[Any]:
    return (times @ flags.astype(np.float32)).astype(np.float64)  # whole numbers below 2 ** 24: exact

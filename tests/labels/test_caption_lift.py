"""Chance, intervals and verdicts of labels that captions are compared with, beside slow twins."""

import math
from itertools import permutations

import numpy as np
import pytest

from sea_pipeline.labels import caption_lift
from sea_pipeline.labels.caption_lift import Flags


def by_shuffles(labelled: Flags, named: Flags) -> tuple[float, float]:
    """Every shuffle that leaves no caption with its image, word by word; a shared word is not looked at."""
    images = range(len(named))
    shuffles = [order for order in permutations(images) if all(order[image] != image for image in images)]
    hits, chances = [], []
    for caption in images:
        for word in np.flatnonzero(named[caption]):
            there = [labelled[order[caption], word] for order in shuffles if not named[order[caption], word]]
            if there:
                hits.append(labelled[caption, word])
                chances.append(np.mean(there))
    return float(np.mean(hits)), float(np.mean(chances))


def test_chance_is_the_mean_over_all_shuffles() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        named, labelled = random.random((2, 5, 6)) < 0.5
        named[:, 0] = True  # in every caption: says nothing
        found = caption_lift.hit_rate_gain(labelled, named, seed=0)
        hit, chance = by_shuffles(labelled, named)
        expected = (hit, chance, hit - chance, hit / chance)
        assert (found.hit, found.chance, found.gain, found.ratio) == pytest.approx(expected, abs=1e-12)


def test_the_interval_is_that_of_a_slow_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_lift, "_ENTRIES_AT_A_TIME", 3)
    random = np.random.default_rng(2)
    named, labelled = random.random((2, 12, 7)) < 0.4
    found = caption_lift.hit_rate_gain(labelled, named, seed=5, resamples=200)
    draws = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), 200)
    lifts = []
    for times in draws:
        again = np.repeat(np.arange(12), times)
        once = caption_lift.hit_rate_gain(labelled[again], named[again], seed=0, resamples=1)
        lifts.append(once.hit - once.chance)
    np.testing.assert_allclose([found.low, found.high], np.quantile(lifts, [0.025, 0.975]), atol=1e-12)
    assert found.not_above == np.mean(np.array(lifts) <= 0)
    assert caption_lift.hit_rate_gain(labelled, named, seed=5, resamples=200) == found
    assert caption_lift.hit_rate_gain(labelled, named, seed=6, resamples=200) != found


def test_labels_that_know_nothing_have_no_lift() -> None:
    random = np.random.default_rng(3)
    named, labelled = random.random((2, 300, 40)) < 0.3
    found = caption_lift.hit_rate_gain(labelled, named, seed=0)
    assert found.low < 0 < found.high
    everywhere = caption_lift.hit_rate_gain(np.ones_like(named), named, seed=0)
    assert (everywhere.hit, everywhere.gain, everywhere.low, everywhere.not_above) == (1, 0, 0, 1)
    assert caption_lift.hit_rate_gain(labelled, np.ones_like(named), seed=0).hit == 0
    ratios = [caption_lift.HitRateGain(hit, chance, 0, 0, 1).ratio for hit, chance in ((0, 0), (0.2, 0), (0.2, 0.1))]
    assert ratios == [1, math.inf, 2]


def findings(*gains: caption_lift.HitRateGain) -> caption_lift.ProbeFindings:
    rows = tuple(caption_lift.SignFigures("x", 1 - row % 2 * 2, 9, gain, 0, 0, ()) for row, gain in enumerate(gains))
    held = caption_lift.FormCounts(1, 0, 0)
    return caption_lift.ProbeFindings(rows, 9, 10, "x", 9, caption_lift.Coverage(held, held, (), ()))


def test_nothing_wins_where_intervals_meet() -> None:
    def gain(low: float, high: float, not_above: float) -> caption_lift.HitRateGain:
        return caption_lift.HitRateGain((low + high) / 2, 0, low, high, not_above)

    meet = findings(gain(0.1, 0.4, 0), gain(0.3, 0.5, 0))
    assert meet.verdicts() == {"x": None}
    assert meet.best is meet.probed[1]
    below = findings(gain(-0.4, -0.3, 1), gain(-0.2, -0.1, 1))
    assert (below.best, below.verdicts()) == (None, {"x": -1})
    two = [gain(0.1, 0.4, 0.01), gain(-0.3, -0.1, 1)]
    assert findings(*two).best is not None
    assert findings(*two, *two).best is None, "of four rows one is above 0 more easily"


@pytest.mark.slow
def test_labels_that_know_nothing_are_not_best_because_they_are_many() -> None:
    random = np.random.default_rng(0)
    tables, above, best = 100, 0, 0
    for _ in range(tables):
        named = random.random((16, 8)) < 0.3
        blind = [caption_lift.hit_rate_gain(random.random(named.shape) < 0.3, named, seed=0) for _ in range(6)]
        above += any(gain.low > 0 for gain in blind)
        best += findings(*blind).best is not None
        seeing = caption_lift.hit_rate_gain(named ^ (random.random(named.shape) < 0.1), named, seed=0)
        (*_, planted) = (found := findings(*blind, blind[0], seeing)).probed
        assert found.best is planted
    assert above > 0.1 * tables
    assert best <= 0.03 * tables

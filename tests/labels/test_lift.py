"""Hits against chance: by hand, by every shuffle, by resampling one image after the other."""

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
        assert (found.hit, found.chance) == pytest.approx(by_shuffles(labelled, named), abs=1e-12)


def test_chance_by_hand() -> None:
    named = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]], bool)
    labelled = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
    found = caption_lift.hit_rate_gain(labelled, named, seed=0)
    # word 0: 1 of 2 where it is named, 1 of 2 elsewhere; word 1: 2 of 2, 1 of 2; word 2: 1 of 2, 0 of 2
    assert found.hit == pytest.approx(4 / 6)
    assert found.chance == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert found.gain == pytest.approx(1 / 3)
    assert found.ratio == pytest.approx(2)


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
    assert caption_lift.hit_rate_gain(labelled, named, seed=5, resamples=200) == found
    assert caption_lift.hit_rate_gain(labelled, named, seed=6, resamples=200) != found


def test_labels_that_know_nothing_have_no_lift() -> None:
    random = np.random.default_rng(3)
    named, labelled = random.random((2, 300, 40)) < 0.3
    found = caption_lift.hit_rate_gain(labelled, named, seed=0)
    assert found.low < 0 < found.high
    everywhere = caption_lift.hit_rate_gain(np.ones_like(named), named, seed=0)
    assert (everywhere.hit, everywhere.gain, everywhere.low) == (1, 0, 0)
    assert caption_lift.hit_rate_gain(labelled, np.ones_like(named), seed=0).hit == 0


def test_nothing_wins_where_intervals_meet() -> None:
    def probed(sign: int, low: float, high: float) -> caption_lift.SignFigures:
        return caption_lift.SignFigures(
            "x", sign, 9, caption_lift.HitRateGain((low + high) / 2, 0, low, high), 0, 0, ()
        )

    def findings(*rows: caption_lift.SignFigures) -> caption_lift.ProbeFindings:
        held = caption_lift.FormCounts(1, 0, 0)
        return caption_lift.ProbeFindings(rows, 9, 10, "x", 9, caption_lift.Coverage(held, held, (), ()))

    meet = findings(probed(1, 0.1, 0.4), probed(-1, 0.3, 0.5))
    assert meet.verdicts() == {"x": None}
    assert meet.best is meet.probed[1]
    assert findings(probed(1, -0.4, -0.3), probed(-1, -0.2, -0.1)).best is None
    assert findings(probed(1, -0.4, -0.3), probed(-1, -0.2, -0.1)).verdicts() == {"x": -1}

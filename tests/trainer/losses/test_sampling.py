"""Windows, Eq. 7 and the one patch per word: invariants on every grid, frequencies against expectation."""

import numpy as np
import numpy.typing as npt
import pytest

from trainer.sampling import draw, generator, one_patch_per_word

GRIDS = [(1, 1), (2, 2), (14, 14), (24, 24), (27, 27), (3, 8), (5, 1)]


def labels(
    grid: tuple[int, int], top_n: int = 10, seed: int = 0
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    patches = grid[0] * grid[1]
    word_ids = random.integers(0, 41_242, (patches, top_n)).astype(np.int32)
    scores = np.sort(random.random((patches, top_n)), -1)[:, ::-1].astype(np.float32)
    kept = random.integers(0, top_n + 1, (patches, 1)) > np.arange(top_n)
    return np.where(kept, word_ids, -1), np.where(kept, scores, 0)


def chi_square(found: npt.NDArray[np.integer], expected: npt.NDArray[np.floating]) -> float:
    return float((((found - expected) ** 2) / expected).sum())


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("window", [1, 2, 3, 4])
@pytest.mark.parametrize("ragged", ["keep", "drop"])
def test_one_labelled_patch_at_most_from_every_window(grid: tuple[int, int], window: int, ragged: str) -> None:
    rows, columns = grid
    word_ids, scores = labels(grid)
    for epoch in range(5):
        drawn = draw(word_ids, scores, grid, generator(0, epoch, 7), window=window, ragged=ragged)
        row, column = np.divmod(drawn.patches, columns)
        windows = list(zip(row // window, column // window, strict=True))
        assert len(set(windows)) == len(windows)
        assert (np.diff(drawn.patches) > 0).all()
        whole = (row // window * window + window <= rows) & (column // window * window + window <= columns)
        assert whole.all() or ragged == "keep"
        for patch, word in zip(*drawn, strict=True):
            assert word in word_ids[patch][word_ids[patch] >= 0]


@pytest.mark.parametrize(("grid", "expected"), [((24, 24), 144), ((27, 27), 196), ((14, 14), 49)])
def test_the_number_of_windows(grid: tuple[int, int], expected: int) -> None:
    word_ids, scores = np.ones((grid[0] * grid[1], 1), np.int64), np.ones((grid[0] * grid[1], 1))
    assert len(draw(word_ids, scores, grid, generator(0, 0, 0)).patches) == expected
    dropped = draw(word_ids, scores, grid, generator(0, 0, 0), ragged="drop")
    assert len(dropped.patches) == (grid[0] // 2) * (grid[1] // 2)


@pytest.mark.slow
def test_words_come_as_often_as_equation_7_says() -> None:
    scores = np.array([[0.5, 0.3, 0.15, 0.05, 0.0]])
    word_ids = np.array([[11, 22, 33, 44, 55]])
    draws = 20_000
    found = [draw(word_ids, scores, (1, 1), generator(3, 0, sample)).words[0] for sample in range(draws)]
    counts = np.array([found.count(word) for word in (11, 22, 33, 44, 55)])
    assert counts[4] == 0
    assert chi_square(counts[:4], draws * scores[0, :4]) < 16.3  # 3 degrees of freedom, 0.1 %


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(2, 2), (3, 3)])
def test_patches_are_uniform_over_their_window(grid: tuple[int, int]) -> None:
    size = grid[0] * grid[1]
    word_ids, scores = np.zeros((size, 1), np.int64), np.ones((size, 1))
    draws = 9_000
    counts = np.zeros(size, np.int64)
    for sample in range(draws):
        counts[draw(word_ids, scores, grid, generator(1, 0, sample)).patches] += 1
    share = {(2, 2): [0.25] * 4, (3, 3): [0.25, 0.25, 0.5, 0.25, 0.25, 0.5, 0.5, 0.5, 1.0]}[grid]
    moving = np.array(share) < 1
    assert (counts[~moving] == draws).all()
    assert chi_square(counts[moving], draws * np.array(share)[moving]) < 24


def test_a_patch_without_a_label_leaves_its_window_out() -> None:
    word_ids = np.array([[5, -1], [-1, -1], [6, -1], [7, -1]])
    scores = np.array([[0.5, 0.0], [0.0, 0.0], [0.0, 0.0], [0.2, 0.0]])
    drawn = draw(word_ids, scores, (1, 4), generator(0, 0, 0), window=1)
    assert drawn.patches.tolist() == [0, 3]  # patch 2 has a label, but of no mass
    assert drawn.words.tolist() == [5, 7]


def test_one_patch_per_word_keeps_each_word_once_and_any_patch_as_likely() -> None:
    words = np.array([4, 9, 4, 4, 2, 9])
    counts = np.zeros(6, np.int64)
    for seed in range(6_000):
        kept = one_patch_per_word(words, np.random.default_rng(seed))
        assert sorted(words[kept]) == [2, 4, 9]
        assert (np.diff(kept) > 0).all()
        counts[kept] += 1
    assert counts[4] == 6_000
    assert chi_square(counts[[0, 2, 3]], np.full(3, 2_000)) < 13.8
    assert chi_square(counts[[1, 5]], np.full(2, 3_000)) < 10.8
    assert len(one_patch_per_word(np.zeros(0, np.int64), np.random.default_rng(0))) == 0


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 9 patches of a 3 x 3 grid"):
        draw(np.zeros((8, 2), np.int64), np.zeros((8, 2)), (3, 3), generator(0, 0, 0))
    with pytest.raises(ValueError, match="window = 0"):
        draw(np.zeros((9, 2), np.int64), np.zeros((9, 2)), (3, 3), generator(0, 0, 0), window=0)
    with pytest.raises(ValueError, match="ragged = 'left': expected 'keep' or 'drop'"):
        draw(np.zeros((9, 2), np.int64), np.zeros((9, 2)), (3, 3), generator(0, 0, 0), ragged="left")  # type: ignore[arg-type]


def test_minus_one_is_no_word() -> None:
    with pytest.raises(ValueError, match="none below 0; found -1"):
        one_patch_per_word(np.array([3, -1, 3]), generator(0, 0, 0))

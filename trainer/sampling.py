"""Draws the patches and words that enter a step (SEA section 4.2), by windows, Eq. 7 and one patch per word.

These are pure functions of arrays and a seed. What an epoch draws for a sample depends on (seed, epoch, sample) alone,
so a resumed run draws what an uninterrupted one would have drawn.

Shapes: P = rows * columns patches, n labels per patch, K patches drawn from an image, N patches of a batch.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class Drawn(NamedTuple):
    """The patches that take part in the contrastive loss, each with one word."""

    patches: Ids
    """(K,): row-major patch indices, ascending."""
    words: Ids
    """(K,): word ids."""


def generator(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """Make the random number generator of one sample in one epoch."""
    return np.random.default_rng((seed, epoch, sample))


def draw(
    word_ids: npt.NDArray[np.integer],
    scores: npt.NDArray[np.floating],
    grid: tuple[int, int],
    random: np.random.Generator,
    *,
    window: int = 2,
    ragged: Literal["keep", "drop"] = "keep",
) -> Drawn:
    """Draw one patch from each window, and one of its words.

    The patch is uniform over the window. The word follows Eq. 7, S_norm = S / sum(S) over the patch's labels. A window
    takes no part if its patch has no label, or only labels of score 0.

    Args:
        word_ids: (P, n), -1 for no label.
        scores: (P, n), not negative.
        grid: (rows, columns); patches are row-major.
        random: see `generator`.
        window: k of the k x k windows; 1 takes every patch.
        ragged: whether the smaller windows at the right and lower edge take part, if k does not divide the grid.

    Raises:
        ValueError: the arrays do not fit the grid or each other, the window is not positive, or `ragged` is neither.
    """
    rows, columns = grid
    if word_ids.ndim != 2 or word_ids.shape != scores.shape or word_ids.shape[0] != rows * columns:
        raise ValueError(
            f"expected {rows * columns} patches of a {rows} x {columns} grid, with word ids and scores alike; found "
            f"{word_ids.shape} and {scores.shape}"
        )
    if window < 1:
        raise ValueError(f"window = {window}: expected at least 1")
    if ragged not in {"keep", "drop"}:
        raise ValueError(f"ragged = {ragged!r}: expected 'keep' or 'drop'")
    row = _one_in_each(rows, window, ragged)
    column = _one_in_each(columns, window, ragged)
    shape = (len(row), len(column))
    # Uniform in each window: its start plus floor(u * length), u in [0, 1)
    picked_rows = row[:, :1] + (random.random(shape) * row[:, 1:]).astype(np.int64)
    picked_columns = column[:, 0] + (random.random(shape) * column[:, 1]).astype(np.int64)
    patches = (picked_rows * columns + picked_columns).ravel()

    # Eq. 7 by inversion: u * sum(S) falls into a label's piece of the cumulated scores with probability S / sum(S).
    mass = np.where(word_ids[patches] >= 0, scores[patches], 0).astype(np.float64).cumsum(-1)
    # One number for each patch, labelled or not, so that the draws of a sample do not depend on which have labels.
    point = random.random(len(patches)) * mass[:, -1]
    chosen = (mass <= point[:, None]).sum(-1)  # the first label whose share of the mass holds the point
    labelled = mass[:, -1] > 0
    # Windows go row by row, patches of neighbouring windows do not: sort to row-major order.
    order = patches[labelled].argsort()
    patches, chosen = patches[labelled][order], chosen[labelled][order]
    return Drawn(patches, word_ids[patches, chosen].astype(np.int64))


def one_patch_per_word(words: Ids, random: np.random.Generator) -> Ids:
    """Keep one patch at random for each word of a batch ("we randomly retain only one patch").

    Returns:
        The kept positions among the N given, ascending. Each kept word occurs once.

    Raises:
        ValueError: -1, which means no label, is among them.
    """
    if (words < 0).any():
        raise ValueError(f"expected word ids, none below 0; found {words.min()}")
    shuffled = random.permutation(len(words))
    # np.unique gives the first place of each word, which is a random one in shuffled order.
    _, first = np.unique(words[shuffled], return_index=True)
    kept: Ids = np.sort(shuffled[first])
    return kept


def _one_in_each(length: int, window: int, ragged: Literal["keep", "drop"]) -> Ids:
    """Return start and length of each window along one side, (count, 2)."""
    starts = np.arange(0, length, window)
    # The last window is shorter if the window does not divide the side.
    lengths = np.minimum(window, length - starts)
    windows = np.stack([starts, lengths], -1)
    return windows if ragged == "keep" else windows[lengths == window]

"""The float64 twin of the search, and vectors to search."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from sea_pipeline.search.exact import WordSearch

Twin = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


def unit(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def twin(patches: torch.Tensor, words: torch.Tensor, top_n: int, sign: int) -> Twin:
    """Eq. 6 word for word: all similarities in float64, sorted by (-s, id), s < 0 and patches of length 0 dropped."""
    s = sign * np.einsum("pd,wd->pw", patches.double().numpy(), words.double().numpy())
    ids = np.array([np.lexsort((np.arange(len(words)), -row.round(12)))[:top_n] for row in s])
    scores = np.take_along_axis(s, ids, -1)
    ids[scores < 0] = -1
    ids[patches.double().norm(dim=-1).numpy() == 0] = -1
    return ids, np.maximum(scores, 0)


def agree(search: WordSearch, patches: torch.Tensor, expected: Twin) -> None:
    ids, scores = search(patches)
    assert ids.dtype == torch.int32
    np.testing.assert_array_equal(ids.numpy(), expected[0])
    np.testing.assert_allclose(scores.numpy(), expected[1], atol=1e-12)

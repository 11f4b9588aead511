"""The fast search against a float64 twin: every backend, ties, uneven sizes, both signs, the fallback."""

import pytest
import torch
import torch.nn.functional as F

from sea_pipeline.search.exact import Backend, WordSearch
from tests.support.search_twin import agree, twin, unit

pytestmark = pytest.mark.usefixtures("int8_products")

BACKENDS: list[Backend] = ["torch", "faiss", "int8"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("patches", "words", "width", "top_n", "sign"),
    [
        (1, 1, 3, 1, 1),
        (7, 33, 5, 10, -1),
        (300, 4097, 16, 10, 1),
        (700, 900, 384, 10, -1),
        (513, 9000, 24, 3, 1),
        (5, 18, 8, 18, -1),
        (3, 19, 8, 10, 1),
    ],
)
def test_every_size_gives_the_float64_answer(
    backend: Backend, patches: int, words: int, width: int, top_n: int, sign: int
) -> None:
    queries, table = unit(patches, width, 1), unit(words, width, 2)
    search = WordSearch(table, top_n=top_n, sign=sign, backend=backend)
    agree(search, queries, twin(queries, table, top_n, sign))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lower_id_even_where_there_are_more_than_the_margin(backend: Backend) -> None:
    table = unit(5000, 16, 3)
    queries = unit(40, 16, 4)
    table[torch.arange(7, 5000, 50)] = queries[0]  # a hundred words exactly at one patch
    table[4990] = table[11]
    search = WordSearch(table, top_n=10, sign=1, backend=backend)
    agree(search, queries, twin(queries, table, 10, 1))
    ids, scores = search(queries[:1])
    assert ids[0].tolist() == list(range(7, 507, 50))
    assert search.fallbacks > 0
    torch.testing.assert_close(scores[0], torch.ones(10, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_differences_below_float32_are_told_apart(backend: Backend) -> None:
    """Words whose cosines differ by less than a float32 product resolves, in an order that float32 would not keep."""
    width = 64
    query = F.normalize(torch.ones(1, width), dim=-1)
    table = query + 3e-5 * torch.randn(3000, width, generator=torch.Generator().manual_seed(5))
    table = F.normalize(table, dim=-1)
    search = WordSearch(table, top_n=10, sign=1, backend=backend)
    agree(search, query, twin(query, table, 10, 1))
    assert search.fallbacks == 1


def test_words_below_zero_are_no_labels() -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    ids, scores = WordSearch(table, top_n=3, sign=1, backend="torch")(torch.tensor([[1.0, 0.0], [-0.6, -0.8]]))
    assert ids.tolist() == [[0, 1, -1], [2, -1, -1]]
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0, 0], [0.6, 0, 0]], dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("sign", "top_n"), [(1, 3), (-1, 37)])
def test_a_patch_of_length_zero_has_no_labels(backend: Backend, sign: int, top_n: int) -> None:
    """Normalising leaves such a vector as it is; before, it got the first words of the list with scores of 0."""
    queries, table = unit(23, 6, 1), unit(37, 6, 2)
    queries[[0, 7, 22]] = 0
    search = WordSearch(table, top_n=top_n, sign=sign, backend=backend)
    agree(search, queries, twin(queries, table, top_n, sign))
    ids, scores = search(queries[[0, 7]])
    assert ids.eq(-1).all()
    assert not scores.any()


def test_permuting_the_words_permutes_the_ids() -> None:
    table, queries = unit(500, 12, 6), unit(20, 12, 7)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(8))
    straight, _ = WordSearch(table, top_n=5, sign=1, backend="torch")(queries)
    permuted, _ = WordSearch(table[order], top_n=5, sign=1, backend="torch")(queries)
    assert torch.equal(order[permuted], straight.long())


def test_half_precision_patches_are_searched_as_they_are() -> None:
    table, queries = unit(400, 12, 6), unit(20, 12, 7).bfloat16()
    agree(WordSearch(table, top_n=5, sign=-1, backend="torch"), queries, twin(queries, table, 5, -1))


def test_n_must_be_within_the_list() -> None:
    with pytest.raises(ValueError, match="top_n = 4: expected between 1 and 3"):
        WordSearch(unit(3, 2), top_n=4, sign=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_gives_the_same_answer() -> None:
    queries, table = unit(600, 48, 1), unit(9001, 48, 2)
    agree(WordSearch(table, top_n=10, sign=-1, backend="torch", device="cuda"), queries, twin(queries, table, 10, -1))

"""The float16 search on a CPU, which computes it slowly: its bound against float64, and who takes over beyond it."""

import pytest
import torch
import torch.nn.functional as F

from sea_pipeline.search.exact import WordSearch
from sea_pipeline.search.float16 import HalfCandidates
from tests.support.search_twin import agree, twin, unit


def by_half(table: torch.Tensor, top_n: int, sign: int = 1) -> WordSearch:
    search = WordSearch(table, top_n=top_n, sign=sign, backend="torch")
    search._candidates = HalfCandidates(table)
    return search


def proposer(search: WordSearch) -> HalfCandidates:
    assert isinstance(search._candidates, HalfCandidates)
    return search._candidates


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("patches", "words", "width", "top_n"), [(1, 1, 3, 1), (7, 33, 5, 10), (300, 4097, 16, 10), (5, 18, 8, 18)]
)
def test_every_size_gives_the_float64_answer(patches: int, words: int, width: int, top_n: int, sign: int) -> None:
    queries, table = unit(patches, width, 1), unit(words, width, 2)
    agree(by_half(table, top_n, sign), queries, twin(queries, table, top_n, sign))


def test_few_patches_need_float32() -> None:
    table, queries = unit(5000, 256, 3), unit(200, 256, 4)
    search = by_half(table, 10)
    agree(search, queries, twin(queries, table, 10, 1))
    assert proposer(search).doubtful < 10


def test_words_that_float16_cannot_tell_apart_get_float32_scores() -> None:
    table = F.normalize(torch.ones(1, 64) + 1e-3 * unit(3000, 64, 5), dim=-1)
    queries = F.normalize(torch.ones(1, 64) + 0.3 * unit(40, 64, 6), dim=-1)
    search = by_half(table, 10)
    agree(search, queries, twin(queries, table, 10, 1))
    assert proposer(search).doubtful == 40


def test_the_bound_holds_for_every_word_and_is_not_idle() -> None:
    table, queries = unit(3000, 128, 7), torch.cat([unit(100, 128, 8), torch.zeros(1, 128)])
    candidates = HalfCandidates(table)
    half = queries.half()
    scores = (half.double() @ table.half().double().T).half()  # as a product with exact sums gives them
    above = queries.double() @ table.double().T - scores.double()
    bounds = torch.stack([candidates._error(queries, half, last) for last in scores.float().T], -1)
    assert (above <= bounds).all()
    assert (above / bounds).max() > 1 / 8


@pytest.mark.parametrize("loses", ["patch", "word"])
def test_the_bound_holds_for_a_vector_that_follows_what_the_other_loses(loses: str) -> None:
    rounded = unit(1, 64, 9)
    exact = (rounded - rounded.half().float()).sign() / 8  # in float16, too; 64 of them are of unit length
    patch, word = (rounded, exact) if loses == "patch" else (exact, rounded)
    candidates, half = HalfCandidates(word), patch.half()
    score = half.double() @ word.half().double().T
    above = float(patch.double() @ word.double().T - score)
    bound = float(candidates._error(patch, half, score[:, 0].float()))
    assert bound / 2 < above <= bound


def test_the_setting_of_sums_is_as_it_was() -> None:
    settings = torch.backends.cuda.matmul
    before = settings.allow_fp16_reduced_precision_reduction
    HalfCandidates(unit(50, 8))(unit(3, 8), 2, 4)
    assert settings.allow_fp16_reduced_precision_reduction == before

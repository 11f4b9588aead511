"""What proposes words in float16, which a CPU computes slowly, and in int8: bounds against float64, and beyond them."""

from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

from sea_pipeline.core.errors import UserError
from sea_pipeline.search import int8 as int8_candidates
from sea_pipeline.search.exact import Backend, WordSearch
from sea_pipeline.search.float16 import HalfCandidates
from sea_pipeline.search.int8 import Int8Candidates, Int8Table, _place
from tests.support.search_twin import agree, twin, unit

pytestmark = pytest.mark.usefixtures("int8_products")


def by_half(table: torch.Tensor, top_n: int, sign: int = 1) -> WordSearch:
    search = WordSearch(table, top_n=top_n, sign=sign, backend="torch")
    search._candidates = HalfCandidates(table)
    return search


def half_of(search: WordSearch) -> HalfCandidates:
    assert isinstance(search._candidates, HalfCandidates)
    return search._candidates


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patches", "words", "width", "top_n", "sign"),
    [(1, 1, 3, 1, 1), (7, 33, 5, 10, -1), (300, 4097, 16, 10, -1), (5, 18, 8, 18, 1)],
)
def test_every_size_gives_the_float64_answer(patches: int, words: int, width: int, top_n: int, sign: int) -> None:
    queries, table = unit(patches, width, 1), unit(words, width, 2)
    agree(by_half(table, top_n, sign), queries, twin(queries, table, top_n, sign))


def test_few_patches_need_float32() -> None:
    table, queries = unit(5000, 256, 3), unit(200, 256, 4)
    search = by_half(table, 10)
    agree(search, queries, twin(queries, table, 10, 1))
    assert half_of(search).doubtful < 10


def test_words_that_float16_cannot_tell_apart_get_float32_scores() -> None:
    table = F.normalize(torch.ones(1, 64) + 1e-3 * unit(3000, 64, 5), dim=-1)
    queries = F.normalize(torch.ones(1, 64) + 0.3 * unit(40, 64, 6), dim=-1)
    search = by_half(table, 10)
    agree(search, queries, twin(queries, table, 10, 1))
    assert half_of(search).doubtful == 40


def test_the_bound_of_float16_holds_for_every_word_and_is_not_idle() -> None:
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


CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


def clusters(words: int, width: int, spread: float = 0.5) -> torch.Tensor:
    """Words around a few centres in few directions, so that most directions are left out of the int8 numbers."""
    random = torch.Generator().manual_seed(1)
    factors = torch.randn(words, width // 4, generator=random) + 2 * torch.eye(width // 4)[torch.arange(words) % 7]
    return F.normalize(
        factors @ torch.randn(width // 4, width, generator=random)
        + spread * torch.randn(words, width, generator=random),
        dim=-1,
    )


def far_words(words: int, width: int) -> torch.Tensor:
    """Words in one place, and every 941st anywhere."""
    table = F.normalize(F.one_hot(torch.tensor(0), width) + 0.01 * unit(words, width, 4), dim=-1)
    table[17::941] = unit(len(table[17::941]), width, 5)
    return table


def near(table: torch.Tensor, count: int, noise: float = 0.3) -> torch.Tensor:
    random = torch.Generator().manual_seed(2)
    chosen = table[torch.randint(len(table), (count,), generator=random)]
    return F.normalize(chosen + noise * torch.randn(chosen.shape, generator=random) / chosen.shape[-1] ** 0.5, dim=-1)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("top_n", [1, 10, 300])
def test_neighbours_of_words_get_the_float64_answer_from_few_candidates(device: str, top_n: int) -> None:
    table = clusters(6000, 160, spread=0.05)
    queries = near(table, 600, noise=0.1)
    found = WordSearch(table, top_n=top_n, sign=1, backend="int8", device=device)
    agree(found, queries, twin(queries, table, top_n, 1))
    assert found.fallbacks == 0
    proposer = found._candidates
    assert isinstance(proposer, Int8Candidates)
    assert proposer._table is not None
    assert proposer._table.word_basis.shape[-1] < 160
    assert top_n == 300 or proposer.crowded == 0


@pytest.mark.parametrize("table", [clusters(3000, 96), far_words(3000, 96)], ids=["clusters", "far"])
@pytest.mark.parametrize("seen", [1, 120])
def test_the_bound_of_int8_holds_for_every_word_and_is_not_idle(table: torch.Tensor, seen: int) -> None:
    """|p·w - the int8 score| against the four terms, word by word: never above, and within a factor of 30 somewhere.

    Scales that are made for other patches than those that come change how good the bound is, not that it holds.
    """
    table[32:64] = table.mean(0)  # a group of words without errors, but for one
    table[40] = unit(1, 96, 4)[0]
    queries = torch.cat([near(table, 60), unit(60, 96, 3)])
    proposer = Int8Candidates(table)
    made = proposer._table_for(queries[:seen])
    int8, unit_score, norms = made.rounded(queries)
    products, _ = proposer._products(made, int8)
    words = torch.arange(3000)
    place = _place(made, torch.arange(120)[:, None], (words // 32)[None], len(int8))
    scores = (
        products[place, words % 32] * unit_score[:, None].double() + (queries.double() @ made.mean.double())[:, None]
    )
    error = (queries.double() @ table.double().T - scores).abs()
    bound = (norms @ made.norms).double()[:, words // 32]
    assert (error <= bound).all()
    assert (error / bound).max() > 1 / 30


def test_the_bound_holds_for_a_word_that_follows_what_a_patch_loses() -> None:
    table = clusters(3000, 96)
    proposer = Int8Table(table, near(table, 60))
    width = proposer.word_basis.shape[-1]
    inside = F.one_hot(torch.tensor(0), width) + 0.45 / 127  # all but the first coordinate are rounded to 0
    lost = (inside - F.one_hot(torch.tensor(0), width)).index_fill(0, torch.tensor(0), 0)
    # Each basis undoes the other: these have `inside` and `lost` as their coordinates.
    patch, word = proposer.word_basis @ inside, proposer.mean + proposer.patch_basis @ F.normalize(lost, dim=0)
    (int8,), (unit_score,), norms = (part[:1] for part in proposer.rounded(patch[None]))
    (word8,), word_norms = proposer.rounded_words(word[None])
    score = unit_score.double() * (int8[:width].double() @ word8.double())
    error = float((patch.double() @ (word - proposer.mean).double() - score).abs())
    bound = float(norms[0] @ word_norms[0])
    assert bound / 2 < error <= bound


def test_words_far_beyond_the_range_of_int8_are_found() -> None:
    """Nearly all words lie together, so that int8 numbers of their scale clip the few others."""
    table = far_words(4000, 33)
    queries = torch.cat([table[17::941], near(table, 100), unit(50, 33, 6)])
    agree(WordSearch(table, top_n=5, sign=1, backend="int8"), queries, twin(queries, table, 5, 1))


def test_words_that_int8_cannot_tell_apart_all_stay_candidates() -> None:
    table = F.normalize(torch.ones(1, 48) + 1e-4 * unit(5000, 48, 6), dim=-1)
    table[4000:] = unit(1000, 48, 7)
    queries = near(table[:4000], 50, noise=1e-4)
    found = WordSearch(table, top_n=10, sign=1, backend="int8")
    agree(found, queries, twin(queries, table, 10, 1))
    assert found._candidates.crowded == 50  # type: ignore[attr-defined]


def test_where_int8_tells_nothing_it_rests_and_looks_again_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    table = clusters(900, 32)
    nowhere, plain = torch.zeros(20, 32), near(table, 20)  # every word may be the best of a zero vector
    proposer, (expected, _) = Int8Candidates(table), twin(plain, table, 1, 1)
    products = Mock(wraps=proposer._products)
    monkeypatch.setattr(proposer, "_products", products)
    tried = []
    for call in range(17):
        products.reset_mock()
        scores, ids = proposer(nowhere if call < 12 else plain, 1, 9)
        assert not scores.any() if call < 12 else ids[:, :1].tolist() == expected.tolist()
        tried.append(products.called)
    # a rest of one call, of three, of seven; in the middle of the last one things get better
    assert [call for call, again in enumerate(tried) if again] == [0, 2, 6, 14, 15, 16]
    assert proposer.crowded == 14 * 20


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_who_has_many_candidates_goes_to_float32(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_candidates, "_CROWDED", share)
    table = clusters(4000, 64)
    queries = torch.cat([near(table, 70), unit(70, 64, 8)])
    found = WordSearch(table, top_n=4, sign=-1, backend="int8")
    agree(found, queries, twin(queries, table, 4, -1))
    assert (found._candidates.crowded > 60) == (share == 0)  # type: ignore[attr-defined]


def test_tiny_vectors_get_their_words() -> None:
    queries = torch.cat([torch.zeros(2, 24), unit(3, 24, 11)])
    found = WordSearch(unit(900, 24, 9), top_n=4, sign=1, backend="int8")
    assert torch.equal(found(1e-30 * queries)[0], found(queries)[0])


def test_words_that_are_all_the_same() -> None:
    table = unit(1, 16, 12).expand(500, -1).contiguous()
    ids, _ = WordSearch(table, top_n=3, sign=1, backend="int8")(torch.cat([table[:2], unit(5, 16, 12)]))
    assert ids[:3].tolist() == [[0, 1, 2]] * 3


def test_every_backend_gives_the_same_bytes() -> None:
    table = clusters(3000, 64)
    table[2000:2100] = table[:100]
    queries = torch.cat([near(table, 90), unit(40, 64, 13), table[:5]])
    ids, scores = WordSearch(table, top_n=10, sign=1, backend="torch")(queries)
    others: list[Backend] = ["faiss", "int8"]
    for backend in others:
        other, same = WordSearch(table, top_n=10, sign=1, backend=backend)(queries)
        assert torch.equal(ids, other)
        assert torch.equal(scores.view(torch.int64), same.view(torch.int64))


def test_a_machine_that_multiplies_int8_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda left, other: right(left, other).clamp_(-32768, 32767))
    with pytest.raises(UserError, match="--search int8"):
        WordSearch(unit(9, 8), top_n=1, sign=1, backend="int8")


def test_patches_that_look_elsewhere_than_words_differ_are_not_crowded() -> None:
    """Words that differ in few directions, patches in all: unscaled, int8 numbers tell nothing of such patches."""
    random = torch.Generator().manual_seed(3)
    spectrum = torch.arange(1, 129).float() ** -1.2
    table = F.normalize(1 + 2 * spectrum * torch.randn(6000, 128, generator=random), dim=-1)
    queries = F.normalize(unit(1, 128, 5) + unit(130, 128, 6), dim=-1)
    found = WordSearch(table, top_n=10, sign=-1, backend="int8")
    agree(found, queries, twin(queries, table, 10, -1))
    assert found._candidates.crowded == 0  # type: ignore[attr-defined]
    unscaled = Int8Candidates(table)
    unscaled._table_for(table[:100] - table.mean(0))  # as if patches were like words
    unscaled(-queries, 10, 18)
    assert unscaled.crowded > 60

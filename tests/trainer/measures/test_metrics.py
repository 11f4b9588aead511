"""Each metric against a slow twin in float64, written as plain loops; planted answers, ties and empty cases."""

import hashlib
import math

import pytest
import torch
import torch.nn.functional as F

from trainer.measures.metrics import MeaningfulShares, gap, label_hits, meaningful, nearest, tacs


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(random(*shape, seed=seed), dim=-1)


def integers(low: int, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return float(a @ b / (a.norm() * b.norm()))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))


def nearest_twin(queries: torch.Tensor, table: torch.Tensor, measure: str) -> tuple[list[int], list[float]]:
    indices, values = [], []
    for query in queries:
        found, best = -1, -math.inf
        for index, row in enumerate(table):
            score = cosine(query, row) if measure == "cosine" else -distance(query, row)
            if score > best:
                found, best = index, score
        indices.append(found)
        values.append(best if measure == "cosine" else -best)
    return indices, values


@pytest.mark.parametrize("measure", ["cosine", "l2"])
@pytest.mark.parametrize(("k", "q", "d", "block"), [(1, 1, 3, 2), (7, 13, 5, 4), (11, 30, 8, 30), (5, 17, 4, 100)])
def test_the_nearest_row_is_that_of_a_loop(measure: str, k: int, q: int, d: int, block: int) -> None:
    queries, table = 3 * random(k, d, seed=1), random(q, d, seed=2)
    indices, values = nearest(queries, table, measure=measure, block=block)
    expected = nearest_twin(queries, table, measure)
    assert (indices.dtype, values.dtype) == (torch.int64, torch.float32)
    assert indices.tolist() == expected[0]
    torch.testing.assert_close(values, torch.tensor(expected[1]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("measure", ["cosine", "l2"])
def test_of_equal_rows_the_first_is_nearest(measure: str) -> None:
    """Rows of real numbers: a matmul gives equal rows unequal scores, above all for a single query."""
    for width, seed in ((7, 3), (64, 4), (577, 5)):
        table = random(1003, width, seed=seed)
        twins = torch.tensor([5, 501, 1000, 1002])
        table[twins] = table[5].clone()
        queries = table[5] + 0.01 * random(21, width, seed=6)
        for block in (20, 333, 2048):
            indices, values = nearest(queries, table, measure=measure, block=block)
            assert indices.tolist() == [5] * 21
            torch.testing.assert_close(values, nearest(queries, table[5:6], measure=measure).values)
        assert [nearest(query[None], table, measure=measure).indices.item() for query in queries] == [5] * 21


def test_ties_between_different_rows_go_to_the_lower_index() -> None:
    basis = torch.eye(4)
    assert nearest(torch.ones(3, 4), basis[[2, 0, 3, 1]], measure="l2", block=3).indices.tolist() == [0, 0, 0]
    assert nearest(torch.tensor([[0.0, 1, 0, 1]]), basis, measure="cosine", block=2).indices.tolist() == [1]


def test_a_distance_far_from_the_origin_keeps_its_digits() -> None:
    table = 1000 + random(9, 6, seed=1)
    indices, values = nearest(table[4:5] + 0.001, table, measure="l2")
    assert indices.item() == 4
    torch.testing.assert_close(values.item(), distance(table[4] + 0.001, table[4]), rtol=1e-6, atol=0)


def test_half_precision_and_autocast_are_computed_in_float32() -> None:
    queries = random(9, 16, seed=1, dtype=torch.bfloat16).requires_grad_()
    table = random(1, 16, seed=3) + 1e-3 * random(40, 16, seed=2)  # nearer to each other than bfloat16 can tell
    plain = nearest(queries.float(), table, measure="cosine")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest(queries, table, measure="cosine", block=7)
        caption = tacs(queries, table)
    assert torch.equal(found.indices, plain.indices)
    torch.testing.assert_close(found.values, plain.values)
    assert not found.values.requires_grad
    assert caption == tacs(queries.float(), table)


def test_what_is_not_finite_shows_in_the_value() -> None:
    queries = random(3, 4)
    queries[1, 2] = math.nan
    for measure in ("cosine", "l2"):
        values = nearest(queries, random(5, 4, seed=1), measure=measure, block=2).values
        assert values.isnan().tolist() == [False, True, False]
    assert math.isnan(gap(queries, random(5, 4, seed=1)))
    assert math.isnan(tacs(queries, random(5, 4, seed=1), best=1))


@pytest.mark.parametrize("measure", ["cosine", "l2"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_nearest_to_none(measure: str, value: float) -> None:
    queries, table = random(9, 4, seed=1), random(7, 4, seed=2)
    whole = torch.tensor([1, 2, 4, 5])
    expected = nearest(queries, table[whole], measure=measure)
    table[[0, 3, 6], 1] = value
    for block in (1, 2, 2048):
        indices, values = nearest(queries, table, measure=measure, block=block)
        assert indices.equal(whole[expected.indices])
        assert values.equal(expected.values)
    assert not nearest(queries, table[[3]], measure=measure).values.isfinite().any()


def test_no_queries_and_no_table() -> None:
    indices, values = nearest(torch.empty(0, 4), random(5, 4), measure="cosine")
    assert indices.shape == values.shape == (0,)
    with pytest.raises(ValueError, match="no rows"):
        nearest(random(2, 4), torch.empty(0, 4), measure="cosine")


@pytest.mark.parametrize("k", [1, 3, 10])
def test_label_hits_are_those_of_a_loop(k: int) -> None:
    found = integers(0, 6, 50, seed=1).to(torch.int32)
    word_ids = integers(-1, 6, 50, 4, seed=2)
    hits = labelled = 0
    for word, labels in zip(found.tolist(), word_ids.tolist(), strict=True):
        if labels[0] >= 0:
            labelled += 1
            hits += word in [label for label in labels[:k] if label >= 0]
    assert label_hits(found, word_ids, k) == (hits, labelled)
    assert 0 < hits < labelled < 50


def test_label_hits_of_no_words_and_of_no_patches() -> None:
    word_ids = torch.tensor([[3, 4], [4, 3], [3, -1], [-1, -1], [-1, 3]])
    words = torch.full((5,), -1)
    assert label_hits(words, word_ids, 10) == (0, 3)
    assert label_hits(words[:0], word_ids[:0], 1) == (0, 0)
    for wrong in ((words, word_ids, 0), (words[:4], word_ids, 1), (words, word_ids[:, 0], 1)):
        with pytest.raises(ValueError, match="expected k >= 1"):
            label_hits(*wrong)


@pytest.mark.parametrize(("m", "c", "best"), [(13, 5, 10), (4, 7, 10), (1, 1, 1)])
def test_tacs_is_that_of_a_loop(m: int, c: int, best: int) -> None:
    visual, caption = random(m, 6, seed=1), random(c, 6, seed=2)
    highest = sorted((max(cosine(x, t) for t in caption) for x in visual), reverse=True)[:best]
    assert tacs(visual, caption, best) == pytest.approx(sum(highest) / len(highest), abs=1e-6)


def test_tacs_of_no_tokens() -> None:
    visual, caption = random(4, 6), random(3, 6)
    for wrong in ((visual[:0], caption, 1), (visual, caption[:0], 1), (visual, caption, 0)):
        with pytest.raises(ValueError, match="expected tokens"):
            tacs(*wrong)


def test_gap_is_the_mean_distance_of_a_loop() -> None:
    visual, table = random(9, 5, seed=1), random(14, 5, seed=2)
    expected = sum(min(distance(x, t) for t in table) for x in visual) / 9
    assert gap(visual, table, block=4) == pytest.approx(expected, rel=1e-6)
    assert gap(table[3:6] + torch.tensor([0.5, 0, 0, 0, 0]), table[3:6] * 1.0) <= 0.5 + 1e-6
    with pytest.raises(ValueError, match="no visual tokens"):
        gap(visual[:0], table)


def meaningful_twin(
    tokens: torch.Tensor, whole: torch.Tensor, token_text: torch.Tensor, word_text: torch.Tensor, ids: torch.Tensor,
    photos: list[str],
) -> MeaningfulShares:  # fmt: skip
    images, m = tokens.shape
    ring = sorted(set(photos), key=lambda photo: hashlib.sha256(photo.encode()).digest())
    after = {photo: ring[(place + 1) % len(ring)] for place, photo in enumerate(ring)}

    def share(of: list[int]) -> float:
        close = 0
        for i in range(images):
            for p in range(m):
                row = int(whole[tokens[i, p]])
                own = [label for label in ids[of[i], p].tolist() if label >= 0]
                close += row >= 0 and any(cosine(token_text[row], word_text[label]) >= 0.5 for label in own)
        return close / (images * m)

    chance = share([photos.index(after[photo]) for photo in photos]) if len(ring) > 1 else None
    return MeaningfulShares(share(list(range(images))), chance, len(set(tokens.flatten().tolist())))


@pytest.mark.parametrize("photos", ["a", "ab", "abcde", "aaabbcccc", "aaa"])
@pytest.mark.parametrize("block", [1, 4, 1024])
def test_meaningful_is_that_of_a_loop(photos: str, block: int) -> None:
    """Rows of one photo, which have the same labels, follow each other."""
    images, names = len(photos), list(photos)
    labels = integers(-1, 9, 5, 7, 2, seed=4).to(torch.int32)
    whole = torch.tensor([-1, 0, 1, -1, 2, 3, 4, 2])
    ids = labels[["abcde".index(name) for name in names]]
    inputs = (integers(0, 8, images, 7, seed=1), whole, unit(5, 3, seed=2), unit(9, 3, seed=3), ids)
    found, expected = meaningful(*inputs, photos=names, block=block), meaningful_twin(*inputs, names)
    assert found == expected
    assert 0 < found.share < 1


def test_meaningful_of_planted_patches() -> None:
    """Tokens: 0 no word; 1 "cat", the direction of label 0; 2 "dog", of label 1; 3 "kitten", 60 degrees off label 0."""
    whole, basis = torch.tensor([-1, 0, 1, 2]), torch.eye(4)
    kitten = torch.tensor([0.5, 0.0, 0.5, math.sqrt(0.5)])
    token_text = torch.stack([basis[0], basis[1], kitten])
    tokens = torch.tensor([[1, 3, 0, 1], [2, 2, 2, 1]])
    ids = torch.tensor([[[0, -1], [0, 1], [0, 1], [-1, -1]], [[1, -1], [0, -1], [0, 1], [0, -1]]])
    assert meaningful(tokens, whole, token_text, basis, ids) == (5 / 8, 4 / 8, 4)
    assert meaningful(tokens, whole, token_text, basis, ids, threshold=0.51) == (4 / 8, 3 / 8, 4)
    assert meaningful(tokens, whole, token_text, basis, torch.full_like(ids, -1)) == (0, 0, 4)
    assert meaningful(tokens[:1], whole, token_text, basis, ids[:1]) == (2 / 4, None, 3)
    with pytest.raises(ValueError, match="expected \\(images, m\\)"):
        meaningful(tokens, whole, token_text, basis, ids[:1])
    with pytest.raises(ValueError, match="expected \\(images, m\\)"):
        meaningful(tokens[:0], whole, token_text, basis, ids[:0])

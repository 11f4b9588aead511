"""What `--search auto` takes: the fastest of what is there, tried once, kept for later runs, with the same answers."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

from sea_pipeline.core.devices import has_onednn
from sea_pipeline.search import candidates, fastest, float32
from sea_pipeline.search import exact as search
from sea_pipeline.search.candidates import Candidates, ranking
from sea_pipeline.search.exact import WordSearch
from sea_pipeline.search.fastest import FastestCandidates
from sea_pipeline.search.float32 import TorchCandidates
from sea_pipeline.search.int8 import Int8Candidates
from tests.support.clock import Clock
from tests.support.search_twin import agree, twin, unit

pytestmark = pytest.mark.usefixtures("int8_products")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(candidates, "time", clock)
    return clock


class Slowed:
    """A candidate search that takes some time by a clock, and counts its patches."""

    patches_per_call = 512

    def __init__(self, words: torch.Tensor, clock: Clock, seconds: float) -> None:
        self._inner, self._clock, self._seconds, self.patches = TorchCandidates(words), clock, seconds, 0

    def __call__(self, patches: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.patches += len(patches)
        self._clock.passes(self._seconds)
        return self._inner(patches, n, k)


def auto(words: torch.Tensor, made_by: dict[str, Callable[[], Candidates]], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(search._PROPOSERS, "auto", lambda words: FastestCandidates(words, made_by))
    return WordSearch(words, top_n=3, sign=1)


def test_the_fastest_is_taken_and_the_next_run_knows_it(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    words, queries = unit(300, 16), unit(150, 16, 1)
    made = {name: Slowed(words, clock, took) for name, took in {"faiss": 3, "int8": 0, "torch": 1}.items()}
    made_by: dict[str, Callable[[], Candidates]] = {name: lambda one=one: one for name, one in made.items()}  # type: ignore[misc]
    first = auto(words, made_by, monkeypatch)
    assert first.backend == "auto"
    agree(first, queries, twin(queries, words, 3, 1))
    assert first.backend == "int8"
    assert first._candidates.names == ["int8", "torch", "faiss"]
    assert all(0 < one.patches <= 3 * 128 for name, one in made.items() if name != "int8")
    before = made["faiss"].patches
    second = auto(words, made_by, monkeypatch)
    assert second.backend == "int8"
    agree(second, queries, twin(queries, words, 3, 1))
    assert made["faiss"].patches == before


def test_other_words_and_other_backends_are_tried_anew(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    words = unit(300, 16)
    made_by: dict[str, Callable[[], Candidates]] = {
        "int8": lambda: Slowed(words, clock, 0.01), "torch": lambda: Slowed(words, clock, 0.0),
    }  # fmt: skip
    auto(words, made_by, monkeypatch)(unit(2, 16))
    assert auto(words, made_by, monkeypatch).backend == "torch"
    assert auto(unit(300, 16, 7), made_by, monkeypatch).backend == "auto"
    assert auto(words, made_by | {"faiss": made_by["torch"]}, monkeypatch).backend == "auto"


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'["int8"]', b'["nothing", "torch"]', b"[1, 2]", b"\xff"])
def test_a_damaged_choice_is_made_again(damage: bytes, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    words = unit(300, 16)
    made_by: dict[str, Callable[[], Candidates]] = {
        "int8": lambda: Slowed(words, clock, 0.01), "torch": lambda: Slowed(words, clock, 0.0),
    }  # fmt: skip
    found = auto(words, made_by, monkeypatch)
    found(unit(2, 16))
    found._candidates._kept.write_bytes(damage)
    again = auto(words, made_by, monkeypatch)
    assert again.backend == "auto"
    again(unit(2, 16))
    assert json.loads(found._candidates._kept.read_bytes()) == ["torch", "int8"]


def test_a_cache_that_cannot_be_written_only_costs_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEA_PIPELINE_CACHE", str(tmp_path / "file"))
    words, queries = unit(300, 16), unit(9, 16, 1)
    agree(WordSearch(words, top_n=3, sign=1), queries, twin(queries, words, 3, 1))


def test_what_is_there_is_tried_and_a_lone_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    words = unit(300, 16)
    monkeypatch.setattr(fastest, "is_fast", lambda device: True)
    monkeypatch.setattr(fastest, "faiss_is_there", lambda: True)
    assert sorted(FastestCandidates(words)._made_by) == ["faiss", "int8", "torch"]
    monkeypatch.setattr(fastest, "is_fast", lambda device: False)
    monkeypatch.setattr(fastest, "faiss_is_there", lambda: False)
    assert WordSearch(words, top_n=3, sign=1).backend == "torch"


def test_crowded_patches_get_the_next_fastest(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Words that int8 cannot tell apart come later than the trial: float32 takes over, and the answer stays."""
    words = F.normalize(torch.ones(1, 48) + 1e-4 * unit(3000, 48, 6), dim=-1)
    words[1500:] = unit(1500, 48, 7)
    easy, crowded = unit(60, 48, 8), F.normalize(words[:40] + 1e-4 * unit(40, 48, 9), dim=-1)
    fallback = Slowed(words, clock, 0.0)
    made_by: dict[str, Callable[[], Candidates]] = {
        "faiss": lambda: fallback, "int8": lambda: Int8Candidates(words), "torch": lambda: Slowed(words, clock, 0.2),
    }  # fmt: skip
    monkeypatch.setattr(fastest, "ranking", lambda actions: ["int8", "faiss", "torch"])
    found = auto(words, made_by, monkeypatch)
    agree(found, easy, twin(easy, words, 3, 1))
    assert fallback.patches == 0
    agree(found, crowded, twin(crowded, words, 3, 1))
    assert fallback.patches == 40


def test_lanes_that_begin_at_once_try_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words, queries = unit(300, 16), unit(150, 16, 1)
    counted = Mock(wraps=fastest.ranking)
    monkeypatch.setattr(fastest, "ranking", counted)
    found, ready = WordSearch(words, top_n=3, sign=1), threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: (ready.wait(), found(queries))[1], range(4)))
    expected = twin(queries, words, 3, 1)
    assert all((ids.numpy() == expected[0]).all() for ids, _ in answers)
    assert counted.call_count == (len(found._candidates._made_by) > 1)  # type: ignore[attr-defined]


def test_hopeless_ones_are_asked_twice_at_most(clock: Clock) -> None:
    asked: list[str] = []

    def slow() -> None:
        asked.append("slow")
        clock.passes(1)

    assert ranking({"fast": lambda: None, "slow": slow}) == ["fast", "slow"]
    assert asked == ["slow"] * 2


@pytest.mark.parametrize("product", [candidates._by_blas, candidates._by_onednn], ids=["blas", "oneDNN"])
@pytest.mark.parametrize(("patches", "words", "width"), [(1, 1, 3), (7, 4097, 33), (130, 900, 384)])
def test_either_product_of_float32_gives_the_float64_answer(
    product: Any, patches: int, words: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if product is candidates._by_onednn and not has_onednn():
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(float32, "fastest_product", lambda words: product)
    queries, table = unit(patches, width, 1), unit(words, width, 2)
    table[words // 2 :] = table[: words - words // 2].clone()  # ties
    n = min(10, words)
    agree(WordSearch(table, top_n=n, sign=-1, backend="torch"), queries, twin(queries, table, n, -1))
    scores, ids = TorchCandidates(table)(queries, n, n)
    exact = (queries.double() @ table.double().T).gather(-1, ids)
    assert ((scores - exact).abs() <= candidates.rounding_bound(width)).all()

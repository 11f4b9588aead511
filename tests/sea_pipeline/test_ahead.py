"""Work by threads: in order, bounded, side by side, and the same labels however many there are."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock

import pytest
import torch

from sea_pipeline import label as label_module
from sea_pipeline.ahead import ahead, batched, lanes
from sea_pipeline.search import Backend, WordSearch
from sea_pipeline.stage_run import StageRun
from tests.contents import content
from tests.search_twin import agree, twin, unit
from tests.world import ColourEncoder, draw_folder


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's threads for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_batches_are_full_but_for_the_last() -> None:
    assert list(batched(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched(iter(()), 3)) == []


def test_results_come_in_order_and_not_too_early() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return number * number

    with ThreadPoolExecutor(3) as pool:
        results = ahead(pool, work, iter(range(9)), 2)
        assert next(results) == 0
        assert set(begun) <= {0, 1, 2}
        assert list(results) == [number * number for number in range(1, 9)]


def test_an_error_of_one_ends_it_and_the_rest_is_left() -> None:
    done: list[int] = []

    def work(number: int) -> int:
        if number == 2:
            raise RuntimeError("two")
        done.append(number)
        return number

    with ThreadPoolExecutor(1) as pool:
        results = ahead(pool, work, range(100), 3)
        with pytest.raises(RuntimeError, match="two"):
            list(results)
    assert max(done) < 7


@pytest.mark.parametrize("count", [1, 3])
def test_lanes_have_one_core_each_and_leave_the_setting_as_it_was(threads: Callable[[int], None], count: int) -> None:
    threads(3)
    together = Barrier(count)

    def seen(_: int) -> int:
        together.wait(20)
        return torch.get_num_threads()

    with pytest.raises(ZeroDivisionError), lanes(count) as pool:
        assert list(pool.map(seen, range(count))) == ([3] if count == 1 else [1] * count)
        _ = 1 / 0
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3


def test_the_labels_are_the_same_by_any_number_of_threads(
    label: Callable[..., StageRun],
    encoder: ColourEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: Callable[[int], None],
) -> None:
    """Ten batches; by three threads the first one goes alone, as models are loaded in it, then three at a time."""
    monkeypatch.setitem(label_module.BATCH_SIZES, "cpu", 2)
    photos = draw_folder(tmp_path / "photos", 21)
    (photos / "003.png").write_bytes(b"bad")
    threads(1)
    label(images=str(photos), out=tmp_path / "one", shard_size=21)
    plain, first, lock, together = encoder.patches, True, Lock(), Barrier(3)

    def patches(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal first
        with lock:
            alone, first = first, False
        if alone:
            assert not together.n_waiting
        else:
            together.wait(20)
        return plain(pixels)

    monkeypatch.setattr(encoder, "patches", patches)
    threads(3)
    run = label(images=str(photos), out=tmp_path / "three", shard_size=21)
    assert (run.report.images, run.report.bad, run.report.failed) == (20, 1, {})
    assert content(tmp_path / "three") == content(tmp_path / "one")
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("backend", ["torch", "faiss", "int8"])
def test_threads_that_search_at_once_get_the_float64_answer(backend: Backend) -> None:
    table = unit(3000, 16, 1)
    search = WordSearch(table, top_n=10, sign=1, backend=backend)
    parts = [unit(200, 16, seed) for seed in range(2, 26)]
    expected = [twin(queries, table, 10, 1) for queries in parts]
    with lanes(4) as pool:
        list(pool.map(lambda queries, answer: agree(search, queries, answer), parts, expected))

"""Work by threads: in order, bounded, side by side, and the same labels however many there are."""

import re
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Barrier
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from sea_pipeline import open_labels
from sea_pipeline.core import parallel
from sea_pipeline.core.parallel import ThreadPool, prefetched_map, torch_thread_pool
from sea_pipeline.labels import stage as label_stage
from sea_pipeline.search.exact import Backend, WordSearch
from tests.support.contents import content
from tests.support.paths import MODULES
from tests.support.search_twin import agree, twin, unit
from tests.support.world import ColourEncoder, Label, draw_folder


def test_results_come_in_order_and_not_too_early() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return number * number

    with ThreadPool(3) as pool:
        results = prefetched_map(pool, work, iter(range(9)), 2)
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

    with ThreadPool(1) as pool:
        results = prefetched_map(pool, work, range(100), 3)
        with pytest.raises(RuntimeError, match="two"):
            list(results)
    assert max(done) < 7


def test_a_thread_without_memory_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_LOOK_SECONDS", 0.01)
    with pytest.raises(MemoryError, match="a thread has ended"), ThreadPool(2) as pool, monkeypatch.context() as patch:
        # The pool calls it where it handles no errors, as a task.
        patch.setattr(Future, "set_result", Mock(side_effect=MemoryError))
        list(prefetched_map(pool, str, range(2)))
    monkeypatch.setattr(parallel, "_ROOM", 1 << 60)
    with pytest.raises(MemoryError, match="no memory for a thread"), ThreadPool(1) as pool:
        list(prefetched_map(pool, str, range(2)))


def test_no_other_pool_of_threads_is_opened() -> None:
    """Nor is its own `map` used, which waits for ever for a thread without memory."""
    found = [name for name, file in MODULES.items() if re.search(r"ThreadPoolExecutor|\bpool\.map\(", file.read_text())]
    assert found == ["sea_pipeline.core.parallel"]


@pytest.mark.parametrize(("count", "each"), [(1, 3), (2, 1), (3, 1), (5, 1)])
def test_lanes_share_the_cores_and_leave_the_setting_as_it_was(
    threads: Callable[[int], None], count: int, each: int
) -> None:
    threads(3)
    together = Barrier(count)

    def seen(_: int) -> int:
        together.wait(100)
        return torch.get_num_threads()

    with pytest.raises(ZeroDivisionError), torch_thread_pool(count) as pool:
        assert list(pool.map(seen, range(count))) == [each] * count
        _ = 1 / 0
    assert torch.get_num_threads() == 3
    with ThreadPool(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3


def test_the_labels_are_the_same_by_any_number_of_threads(
    label: Label,
    encoder: ColourEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: Callable[[int], None],
) -> None:
    """Nine batches, by three threads three at a time, all behind the loading of the encoder.

    An image of the first batch is found out to be bad after one of a later batch that cannot even be read.
    """
    monkeypatch.setitem(label_stage.BATCH_SIZES, "cpu", 2)
    photos = draw_folder(tmp_path / "photos", 19)
    (photos / "009.png").write_bytes(b"bad")
    with Image.open(photos / "000.png") as image:
        first = torch.tensor(encoder.preprocess(image).values)
    plain, loaded, together = encoder.patches, 0, Barrier(3)

    def load() -> None:
        nonlocal loaded
        loaded += 1

    def patches(pixels: torch.Tensor) -> torch.Tensor:
        assert loaded == 1
        together.wait(100)
        vectors = plain(pixels)
        if torch.equal(pixels[0], first):
            vectors[0] = torch.nan
        return vectors

    monkeypatch.setattr(encoder, "load", load)
    monkeypatch.setattr(encoder, "patches", patches)
    for count in (1, 3):
        threads(count)
        loaded, together = 0, Barrier(count)
        run = label(images=str(photos), out=tmp_path / str(count), shard_size=19, max_bad=0.2)
        assert (run.report.images, run.report.bad, run.report.failed) == (17, 2, {})
        assert torch.get_num_threads() == count
    assert content(tmp_path / "3") == content(tmp_path / "1")
    stages = [bad["stage"] for bad in open_labels(tmp_path / "3").quarantine()]
    assert stages == ["encode", "decode"]


@pytest.mark.slow
@pytest.mark.usefixtures("int8_products")
@pytest.mark.parametrize("backend", ["torch", "faiss", "int8"])
def test_threads_that_search_at_once_get_the_float64_answer(backend: Backend) -> None:
    table = unit(3000, 16, 1)
    search = WordSearch(table, top_n=10, sign=1, backend=backend)
    parts = [unit(200, 16, seed) for seed in range(2, 26)]
    expected = [twin(queries, table, 10, 1) for queries in parts]
    with torch_thread_pool(4) as pool:
        list(pool.map(lambda queries, answer: agree(search, queries, answer), parts, expected))

"""Work that takes long is heard, from any thread, and work that is done at once is not."""

import threading
import time
from contextlib import AbstractContextManager, nullcontext

import pytest

from sea_pipeline.core import progress
from sea_pipeline.core.parallel import ThreadPool
from sea_pipeline.core.progress import SILENT, Advance, progress_if_slow, say_if_slow
from tests.support.heard import Heard, waited_for


class Bars(Heard):
    """Keeps what bars are opened and how far they are advanced."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[tuple[str, int, int]] = []
        self.counts: list[int] = []

    def progress(self, what: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        time.sleep(0.01)  # in which another thread would open a second bar
        self.opened.append((what, total, done))
        return nullcontext(self.counts.append)


def test_threads_open_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SLOW", -1.0)
    bars = Bars()
    with ThreadPool(8) as pool, progress_if_slow(bars, "hashing", 40) as advance:
        advance(0)
        list(pool.map(advance, [1] * 40))
    assert bars.opened == [("hashing", 40, 1)]
    assert sum(bars.counts) == 39
    assert len(bars.lines) == 1


@pytest.mark.parametrize("slow", [0.0, 1e6])
def test_what_cannot_be_counted_is_said_again_and_again(slow: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SLOW", slow)
    monkeypatch.setattr(progress, "_AGAIN", 0.001)
    heard = Heard()
    with say_if_slow(heard, "listing"):
        if slow == 0:
            waited_for(lambda: len(heard.lines) > 2)
    assert set(heard.lines) == ({"listing: 0 s so far"} if slow == 0 else set())
    said = len(heard.lines)
    time.sleep(0.01)
    assert len(heard.lines) == said, "it is over"


def test_it_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), say_if_slow(Heard(), "work"):
        _ = 1 / 0
    with say_if_slow(SILENT, "work"):
        assert threading.active_count() == before

"""Two shards at once, as on a GPU: the same folder, and an end for both when one ends the run."""

from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.execution.local import run
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.labels.stage import LabelStage
from sea_pipeline.output.ledger import Ledger
from tests.support.contents import content, stored
from tests.support.worker_world import PlantedStage, planted_ledger
from tests.support.world import Label, draw_folder


class Beside(PlantedStage):
    """`meet` is told of each shard as it begins."""

    at_once = 2

    def __init__(self, faults: Path, meet: Callable[[int, Callable[[int], None]], None]) -> None:
        super().__init__(faults)
        self._meet = meet

    def process(self, samples: list[Sample], source: Any, target: Path, footer: dict[str, Any], advance: Any) -> Any:
        self._meet(footer["shard"], advance)
        return super().process(samples, source, target, footer, advance)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return planted_ledger(tmp_path / "out", images=24)


def test_two_shards_meet_and_leave_what_one_after_the_other_does(ledger: Ledger, tmp_path: Path) -> None:
    alone = planted_ledger(tmp_path / "alone", images=24)
    run(alone, PlantedStage(tmp_path / "none"), max_bad=1)
    shards, passed, both = ledger.dataset.shards, list[int](), Barrier(2)
    assert shards % 2 == 0
    report = run(ledger, Beside(tmp_path / "none", lambda *_: both.wait(10) and None), max_bad=1, advance=passed.append)
    assert stored(str(ledger.root)) == stored(str(alone.root))
    assert report.at_once == 2
    assert sum(passed) == report.images + report.bad == ledger.dataset.images


def test_a_shard_that_fails_leaves_the_others(ledger: Ledger, tmp_path: Path) -> None:
    def fail(shard: int, advance: Callable[[int], None]) -> None:
        if shard == 1:
            raise RuntimeError("one")

    report = run(ledger, Beside(tmp_path / "none", fail), max_bad=1)
    assert report.failed == {1: "RuntimeError: one"}
    assert ledger.missing() == [1]


@pytest.mark.parametrize("kind", [UserError, KeyboardInterrupt])
def test_what_ends_the_run_ends_the_shard_beside_it(kind: type[BaseException], ledger: Ledger, tmp_path: Path) -> None:
    both, ended = Barrier(2), Event()

    def end(shard: int, advance: Callable[[int], None]) -> None:
        both.wait(10)
        if shard == 0:
            raise kind("the end")
        try:
            while True:  # images pass for as long as somebody wants them
                advance(1)
                ended.wait(0.01)
        except KeyboardInterrupt:
            ended.set()
            raise

    passed: list[int] = []
    with pytest.raises(kind, match="the end"):
        run(ledger, Beside(tmp_path / "none", end), max_bad=1, advance=passed.append)
    assert ended.is_set()
    assert not list(ledger.commits())
    assert not list(ledger.shard_path(0).parent.iterdir())
    report = run(ledger, PlantedStage(tmp_path / "none"), max_bad=1)
    assert report.images + report.bad == ledger.dataset.images


def test_labels_are_the_same(label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = str(draw_folder(tmp_path / "photos", 18))
    label(images=photos, out=tmp_path / "alone")
    made = LabelStage.__init__

    def twice(stage: LabelStage, *given: Any, **options: Any) -> None:
        made(stage, *given, **options)
        stage.at_once = 2

    monkeypatch.setattr(LabelStage, "__init__", twice)
    label(images=photos, out=tmp_path / "beside")
    assert content(tmp_path / "beside") == content(tmp_path / "alone")

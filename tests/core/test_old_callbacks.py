"""Callbacks by the names that they had before there were reporters: they work, with a warning that says what to do."""

from pathlib import Path
from typing import Any

import pytest

from sea_pipeline.core.progress import SILENT, ProgressOnly, Reporter
from sea_pipeline.core.renamed import Callbacks, taking_callbacks
from sea_pipeline.labels.run import LabelSettings, label_images
from tests.support.heard import Heard
from tests.support.world import ColourEncoder, draw_folder
from trainer.training.reporter import TrainCallbacks, reporter_of_told

OLD = "reporter= takes the place of {}; the old name goes with version 0.2"


def test_label_hears_as_before(encoder: ColourEncoder, words: Path, tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", 3)
    settings = LabelSettings.of(images=str(photos), wordlist=str(words), top_n=3, out=tmp_path / "out", device="cpu")
    folders: list[Any] = []
    bars: list[tuple[Any, ...]] = []
    said: list[str] = []

    def bar(*given: Any) -> Any:
        bars.append(given)
        return SILENT.progress("", 0)

    with pytest.warns(DeprecationWarning, match=OLD.format("begun= and say= and progress=")) as warned:
        label_images(settings, begun=folders.append, say=said.append, progress=bar)  # type: ignore[call-arg]
    assert warned[0].filename == __file__
    assert [ledger.root for ledger in folders] == [tmp_path / "out"]
    assert said == []  # where the labels go was the business of `begun`
    assert ("labelling", 3, 0) in bars
    heard = Heard()
    label_images(settings, heard)
    assert heard.lines == [f"labels go to {tmp_path / 'out'}"]


def test_train_hears_as_before() -> None:
    @taking_callbacks("told", made_by=reporter_of_told)
    def work(*, reporter: Reporter = SILENT) -> Reporter:
        reporter.message("a line")
        return reporter

    rows: list[Any] = []
    lines: list[str] = []
    with pytest.warns(DeprecationWarning, match=OLD.format("told=")):
        told = work(told=TrainCallbacks(say=lines.append, data=rows.append))  # type: ignore[call-arg]
    assert isinstance(told, TrainCallbacks)
    told.data({"rows": 1})
    told.trainable({})
    told.warning("nobody hears it")
    assert (lines, rows) == (["a line"], [{"rows": 1}])
    assert work() is SILENT


def test_only_a_warning_that_is_shown_is_worth_looking_for() -> None:
    assert Heard().shows_warnings
    assert Callbacks(warn=print).shows_warnings
    assert not SILENT.shows_warnings
    assert not ProgressOnly(Heard()).shows_warnings
    assert not Callbacks(say=print, warn=None).shows_warnings
    Callbacks(say=None).message("nobody hears it")

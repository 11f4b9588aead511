"""Processes that work on one folder or cache: where nothing locks, where one is killed, where one extends it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sea_pipeline import label_cache, open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.execution import local
from sea_pipeline.labels.stage import LabelStage
from sea_pipeline.output import begin
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage import locks
from sea_pipeline.storage.publish import TEMPORARY, check_result, publish_result
from sea_pipeline.storage.scratch import host
from tests.support.contents import content
from tests.support.grown_photos import grow
from tests.support.grown_photos import photos as photos
from tests.support.kills import DEAD
from tests.support.world import Label, draw_folder


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system without locks."""

    def refused(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(locks.fcntl, "flock", refused)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has a rival act once, just before the next call of a function."""

    def plant(owner: object, name: str, rival: Callable[[], object]) -> None:
        plain = getattr(owner, name)

        def beaten(*given: Any) -> Any:
            monkeypatch.setattr(owner, name, plain)
            rival()
            return plain(*given)

        monkeypatch.setattr(owner, name, beaten)

    return plant


@pytest.mark.parametrize("moment", ["entries", "write_plan"])
@pytest.mark.parametrize("name", ["wordlist", "images"])
def test_who_begins_later_leaves_the_first_ones_folder_as_it_is(
    label: Label, photos: Path, tmp_path: Path, unlocked: None, meanwhile: Any, name: str, moment: str
) -> None:
    (tmp_path / "wordlist").write_text("red\ngreen\nblue\n")
    draw_folder(tmp_path / "images", 5)
    meanwhile(begin, moment, lambda: label(images=str(photos)))
    with pytest.raises(UserError, match=r"another run"):
        label(**{"images": str(photos)} | {name: str(tmp_path / name)})
    assert check_files(Ledger.open(tmp_path / "labels")).problems == []
    assert label(images=str(photos)).report.images == 0


def test_a_run_that_ends_behind_an_extension_leaves_it_finished(
    label: Label, photos: Path, tmp_path: Path, meanwhile: Any
) -> None:
    def extend() -> None:
        grow(photos)
        label(images=str(photos), extend=True)
        extended.update(content(tmp_path / "labels"))

    extended: dict[str, bytes] = {}
    meanwhile(local, "finish_where_due", extend)
    label(images=str(photos))
    assert len(open_labels(tmp_path / "labels")) == 16
    assert content(tmp_path / "labels") == extended


def test_what_another_run_left_as_it_was_killed_is_gone_at_the_end(
    label: Label, photos: Path, tmp_path: Path, meanwhile: Any
) -> None:
    scratch = tmp_path / "labels" / TEMPORARY
    meanwhile(LabelStage, "finish", (scratch / f"part.{host()}.{DEAD}.0").touch)
    label(images=str(photos))
    assert list(scratch.iterdir()) == []


def test_of_two_that_unpack_the_same_labels_both_have_them(
    label: Label, photos: Path, tmp_path: Path, unlocked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(images=str(photos))
    plain = label_cache._unpack

    def beaten(store: Any, folder: Path) -> None:
        monkeypatch.setattr(label_cache, "_unpack", plain)
        plain(store, folder)
        assert len(label_cache.label_cache(open_labels(tmp_path / "labels"))) == 10

    monkeypatch.setattr(label_cache, "_unpack", beaten)
    assert len(label_cache.label_cache(open_labels(tmp_path / "labels"))) == 10
    assert len(list((tmp_path / "cache" / "labels").iterdir())) == 1


def test_words_leave_nothing_of_a_killed_process(label: Label, photos: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "cache" / "words" / TEMPORARY
    scratch.mkdir(parents=True)
    (scratch / f"key.npz.{host()}.{DEAD}.0").touch()
    label(images=str(photos))
    assert list(scratch.iterdir()) == []


def test_results_side_by_side_and_what_is_left_of_killed_ones(tmp_path: Path) -> None:
    left = [tmp_path / f".a.html.{host()}.{process}.0" for process in (DEAD, os.getpid())]
    for path in left:
        path.touch()
    check_result(tmp_path / "a.html")
    with publish_result(tmp_path / "a.html") as scratch:
        check_result(tmp_path / "b.html")
        with publish_result(tmp_path / "b.html") as other:
            other.write_text("b")
        scratch.write_text("a")
    assert (tmp_path / "a.html").read_text() == "a"
    assert {path.name for path in tmp_path.iterdir()} == {"a.html", "b.html", left[1].name}

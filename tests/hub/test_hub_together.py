"""Pushes and pulls of one folder at once, of which one waits while the other one ends."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.hub import pull as pulling
from sea_pipeline.hub import push as pushing
from sea_pipeline.hub.pull import pull
from sea_pipeline.hub.push import push
from sea_pipeline.storage import locks
from tests.hub.helpers import NAME, clients_own, fetched, left_beside, own
from tests.hub.stand_in import Hub
from tests.support.contents import files_in
from tests.support.world import Label, draw_folder

pytestmark = clients_own


@pytest.mark.parametrize("waits", [True, False])
def test_a_pull_that_another_one_finishes_fetches_nothing(
    labels: Path, hub: Hub, pushed: str, tmp_path: Path, meanwhile: Any, waits: bool
) -> None:
    """It waits for the folder that the other one renames, or comes when that one is renamed already."""
    asked: list[int] = []

    def rival() -> None:
        pull(NAME, tmp_path / "pulled")
        asked.append(len(fetched(hub)))

    meanwhile(*((locks, "_is_claimed") if waits else (pulling, "claimed_for_run")), rival)
    done = pull(NAME, tmp_path / "pulled")
    assert (done.fetched, len(fetched(hub))) == (0, asked[0])
    assert files_in(tmp_path / "pulled") == own(labels)
    assert left_beside(tmp_path) == []


def test_a_pull_of_another_state_leaves_the_one_that_came_first(
    label: Label, labels: Path, pushed: str, tmp_path: Path, meanwhile: Any
) -> None:
    whole = own(labels)
    label(images=str(draw_folder(tmp_path / "photos", 11)), retry_bad=True)  # the bad one is mended
    push(labels, NAME)
    meanwhile(locks, "_is_claimed", lambda: pull(NAME, tmp_path / "pulled", revision=pushed))
    with pytest.raises(UserError, match="expected no such folder, or the same one; found something else"):
        pull(NAME, tmp_path / "pulled")
    assert files_in(tmp_path / "pulled") == whole
    assert left_beside(tmp_path) == []


def test_a_push_that_another_one_finishes_sends_nothing(labels: Path, hub: Hub, tmp_path: Path, meanwhile: Any) -> None:
    meanwhile(locks, "_is_claimed", lambda: push(labels, NAME))
    assert push(labels, NAME).sent == 0
    assert list((tmp_path / "cache" / "push").iterdir()) == []


def test_a_push_removes_its_files_before_another_one_can_begin(
    labels: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = shutil.rmtree

    def removes(folder: Path, **options: Any) -> None:
        with pytest.raises(UserError, match="another process works on it"), locks.claimed_for_run(folder, seconds=0):
            pass
        plain(folder, **options)

    monkeypatch.setattr(pushing.shutil, "rmtree", removes)
    push(labels, NAME)
    assert list((tmp_path / "cache" / "push").iterdir()) == []

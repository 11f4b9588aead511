"""A third command gets kills, workers, extension, quarantine and verification from `run_job`; see CONTRIBUTING."""

import inspect
import json
import pickle
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from sea_pipeline.core import progress
from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Advance
from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.execution.sharded_job import run_job
from sea_pipeline.inputs.samples import Listing
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage import publish
from tests.support.contents import content
from tests.support.count_job import CountJob, CountSettings
from tests.support.heard import Heard, waited_for
from tests.support.kills import killed_around

COUNT = 11


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(COUNT):
        draw(tmp_path / "images" / f"{number:02d}.png", number)
    (tmp_path / "images" / "07.png").write_bytes(b"bad")
    return tmp_path / "images"


def draw(path: Path, number: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (number + 1, 3)).save(path)


def asked(images: Path, out: Path, **settings: Any) -> CountJob:
    return CountJob(CountSettings.of(images=str(images), out=out, **settings))


def count(images: Path, out: Path, reporter: Heard | None = None, **settings: Any) -> StageRun:
    return run_job(asked(images, out, **settings), reporter or Heard())


def counts(run: StageRun) -> dict[str, int]:
    tables = (pq.read_table(run.ledger.shard_path(shard)) for shard in range(run.ledger.dataset.shards))
    return {row["image_id"]: row["count"] for table in tables for row in table.to_pylist()}


def test_it_is_one_small_class() -> None:
    assert len(inspect.getsource(CountJob).splitlines()) < 40


def test_it_counts_and_keeps_bad_images_aside(images: Path, tmp_path: Path) -> None:
    run = count(images, tmp_path / "out")
    assert counts(run) == {f"{number:02d}.png": 3 * (number + 1) for number in range(COUNT) if number != 7}
    assert [item["image_id"] for item in run.ledger.quarantined()] == ["07.png"]
    assert check_files(run.ledger).problems == []
    assert run.ledger.finished
    told = run.to_json()
    assert (told["run"]["device"], told["run"]["backend"], told["run"]["images"]) == ("cpu", "", COUNT - 1)
    again = count(images, tmp_path / "out")
    assert (again.report.images, again.device) == (0, "cpu")


def test_a_long_listing_is_heard(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, job = Heard(), asked(images, tmp_path / "out")
    plain = job.listing

    def listing() -> Listing:
        waited_for(lambda: heard.lines == ["listing the images: 0 s so far"])
        return plain()

    monkeypatch.setattr(progress, "SLOW", 0)
    monkeypatch.setattr(job, "listing", listing)
    assert len(counts(run_job(job, heard))) == COUNT - 1


def test_a_worker_makes_the_stage_from_the_settings_alone(images: Path, tmp_path: Path) -> None:
    ledger = count(images, tmp_path / "out").ledger
    sent = pickle.loads(pickle.dumps(asked(images, tmp_path / "out")))
    assert sent.stage(ledger).describe()["device"] == "cpu"
    other = pickle.loads(pickle.dumps(asked(images, tmp_path / "out", channels=3)))
    with pytest.raises(UserError, match=r"would make other counts; .* channels: 1 there, 3 on the worker"):
        other.stage(ledger)


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 2, 3, 4, 7, 9])
@pytest.mark.parametrize("before", [True, False])
def test_a_kill_loses_nothing(images: Path, tmp_path: Path, call: int, before: bool) -> None:
    """Plan, dataset, 3 x (rows, commit), one quarantine, manifest: 10 renames."""
    count(images, tmp_path / "whole")
    with killed_around(publish, "_put_in_place", call, before=before):
        count(images, tmp_path / "out")
    count(images, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_damage_is_done_again_and_said(images: Path, tmp_path: Path) -> None:
    run = count(images, tmp_path / "out")
    before, heard = content(tmp_path / "out"), Heard()
    rows = Path(run.ledger.shard_path(1))
    rows.write_bytes(rows.read_bytes()[::-1])
    assert count(images, tmp_path / "out", heard).report.images == 3
    assert [line for line in heard.lines if line.endswith("shard 1 is done again")]
    assert content(tmp_path / "out") == before


def test_new_images_become_shards_of_their_own(images: Path, tmp_path: Path) -> None:
    first = count(images, tmp_path / "out")
    before = counts(first)
    draw(images / "00-new.png", 20)
    with pytest.raises(UserError, match=r"was begun with less: new images.* add it with --extend"):
        count(images, tmp_path / "out")
    run = count(images, tmp_path / "out", extend=True)
    assert run.report.images == 1
    assert counts(run) == before | {"00-new.png": 63}
    assert check_files(run.ledger).problems == []


def test_other_settings_are_another_folder(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count(images, tmp_path / "out")
    with pytest.raises(UserError, match="Differing: channels: 1 there, 3 asked for"):
        count(images, tmp_path / "out", channels=3)
    monkeypatch.chdir(tmp_path)
    run = run_job(CountJob(CountSettings(images=str(images), limit=2)))
    folder = Path(run.ledger.root)
    assert folder.parent == Path("runs/counts")
    assert folder.name.startswith("images-first2-")
    assert json.loads((folder / "dataset.json").read_text())["kind"] == "counts"


class Stopping(Heard):
    """Presses Ctrl-C when so many images have passed."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self._left = images

    def progress(self, what: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        def advance(count: int) -> None:
            self._left -= count if what == "counting" else 0
            if self._left < 0:
                raise KeyboardInterrupt

        return nullcontext(advance)


@pytest.mark.parametrize("passed", [0, 3, 9, 10])
def test_after_ctrl_c_it_is_said_what_is_kept(images: Path, tmp_path: Path, passed: int) -> None:
    heard = Stopping(passed)
    with pytest.raises(KeyboardInterrupt):
        count(images, tmp_path / "out", heard)
    commits = [json.loads(path.read_text()) for path in (tmp_path / "out" / "commits").glob("*.json")]
    done = sum(commit["rows"] + commit["bad"] for commit in commits)
    assert done <= passed
    said = f"{len(commits)} of 3 shards are kept, with {done} of 11 images; a shard is kept when its 4 images are done"
    assert heard.lines[-1] == f"{said} (--shard-size)"
    assert len(counts(count(images, tmp_path / "out"))) == 10

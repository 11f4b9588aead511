"""Runs that are killed, and what works on one folder at once: runs, shards, rivals without a lock between them."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest

from sea_pipeline import label_cache, open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.execution.local import run
from sea_pipeline.execution.run_report import RunTotals
from sea_pipeline.execution.sharded_job import _reopen_bad_shards
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.labels.settings import LabelSettings
from sea_pipeline.labels.stage import LabelStage
from sea_pipeline.output import begin
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage import locks, publish
from sea_pipeline.storage.publish import TEMPORARY
from sea_pipeline.storage.results import ResultKind, check_result, publish_result
from sea_pipeline.storage.scratch import host
from tests.support.contents import content, stored
from tests.support.kills import DEAD, killed_around
from tests.support.programs import Begin, labelling
from tests.support.worker_world import PlantedStage, planted_ledger
from tests.support.world import BATCHES, Label, Shelved, draw_folder, draw_growing, grow


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "photos", 18)


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    return draw_growing(tmp_path / "growing")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
@pytest.mark.parametrize("call", range(1, 14))
def test_a_kill_around_any_rename_loses_nothing(
    label: Label, shelved: Shelved, tmp_path: Path, moment: str, call: int
) -> None:
    """Plan, words, dataset, cache, 3 x (data, commit), one quarantine, words.parquet, manifest: 13 renames in a run."""
    whole = shelved(9)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    with killed_around(publish, "_put_in_place", call, before=moment == "before the rename"):
        label(images=str(whole / "photos"))
    label(images=str(whole / "photos"))
    assert content(tmp_path / "labels") == content(whole / "labels")


def test_sigkill_at_random_moments_loses_nothing(
    label: Label, tmp_path: Path, words: Path, program: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BATCHES, "8")  # of a shard each: the kills find it at work, however late they come
    photos = draw_folder(tmp_path / "photos", 400)
    label(images=str(photos), out=tmp_path / "whole", shard_size=8)
    command = labelling(photos, words, tmp_path / "killed", "--shard-size", 8, "--search", "torch")
    moments = random.Random(0)
    commits = tmp_path / "killed" / "commits"
    for _ in range(6):
        more = len(list(commits.glob("*"))) + moments.randrange(5)
        process = program(*command)
        while "labels go to" not in process.stderr or len(list(commits.glob("*"))) < more:
            assert process.returncode is None
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.02))
        process.signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "manifest.json").exists()
    assert list(commits.iterdir())
    monkeypatch.delenv(BATCHES)
    last = program(*command)
    assert last.wait() == 0
    assert "50 of 50 done" in last.stdout
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not list((tmp_path / "killed" / ".tmp").iterdir())


def test_two_runs_of_one_folder_at_once_do_no_harm(
    label: Label, photos: Path, tmp_path: Path, words: Path, program: Begin
) -> None:
    label(images=str(photos), out=tmp_path / "whole")
    command = labelling(photos, words, tmp_path / "both", "--shard-size", 4)
    both = [program(*command) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert content(tmp_path / "both") == content(tmp_path / "whole")


def test_two_runs_with_other_settings_at_once_never_mix(
    tmp_path: Path, words: Path, photos: Path, program: Begin
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("\n".join(reversed(words.read_text().split())))
    for number in range(2):
        out = tmp_path / f"out{number}"
        runs = [program(*labelling(photos, wordlist, out)) for wordlist in (words, short)]
        assert sorted(run.wait() for run in runs) == [0, 1]
        assert "holds another run" in "".join(run.stderr for run in runs)
        winner = (words, short)[[run.returncode for run in runs].index(0)]
        assert open_labels(out).words == tuple(winner.read_text().split())
        assert check_files(Ledger.open(out)).problems == []


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
    meeting = Beside(tmp_path / "none", lambda *_: both.wait(100) and None)
    report = run(ledger, meeting, max_bad=1, advance=passed.append)
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
        both.wait(100)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "moment"), [("images", "entries"), ("wordlist", "write_plan"), ("images", "write_plan")]
)
def test_who_begins_later_leaves_the_first_ones_folder_as_it_is(
    label: Label, growing: Path, tmp_path: Path, unlocked: None, meanwhile: Any, name: str, moment: str
) -> None:
    (tmp_path / "wordlist").write_text("red\ngreen\nblue\n")
    draw_folder(tmp_path / "images", 5)
    meanwhile(begin, moment, lambda: label(images=str(growing)))
    with pytest.raises(UserError, match=r"another run"):
        label(**{"images": str(growing)} | {name: str(tmp_path / name)})
    assert check_files(Ledger.open(tmp_path / "labels")).problems == []
    assert label(images=str(growing)).report.images == 0


def test_a_run_that_ends_behind_an_extension_leaves_it_finished(
    label: Label, growing: Path, tmp_path: Path, meanwhile: Any
) -> None:
    def extend() -> None:
        grow(growing)
        label(images=str(growing), extend=True)
        extended.update(content(tmp_path / "labels"))

    extended: dict[str, bytes] = {}
    meanwhile(RunTotals, "_is_over", extend)
    label(images=str(growing))
    assert len(open_labels(tmp_path / "labels")) == 16
    assert content(tmp_path / "labels") == extended


def test_what_a_run_that_begins_takes_back_is_done_again_by_the_one_that_ends(
    ledger: Ledger, tmp_path: Path, meanwhile: Any
) -> None:
    stage = PlantedStage(tmp_path / "none")
    meanwhile(RunTotals, "_is_over", lambda: ledger.reopen_bad_shards(0))
    run(ledger, stage, max_bad=1)
    assert ledger.complete
    alone = planted_ledger(tmp_path / "alone", images=24)
    run(alone, stage, max_bad=1)
    assert stored(str(ledger.root)) == stored(str(alone.root))


def test_a_run_that_begins_waits_for_the_one_that_ends_and_takes_nothing_back(
    label: Label, photos: Path, tmp_path: Path
) -> None:
    (photos / "003.png").write_bytes(b"bad")
    label(images=str(photos), shard_size=2)
    manifest, ledger = tmp_path / "labels" / "manifest.json", Ledger.open(tmp_path / "labels")
    written = manifest.read_bytes()
    settings = LabelSettings(images=str(photos), wordlist="w", encoder="e", out=tmp_path / "labels")
    with ThreadPoolExecutor() as pool, locks.locked(ledger.root):
        manifest.unlink()
        begun = pool.submit(_reopen_bad_shards, settings, ledger)
        with pytest.raises(TimeoutError):
            begun.result(0.5)
        manifest.write_bytes(written)
    assert begun.done()
    assert ledger.complete


def test_what_another_run_left_as_it_was_killed_is_gone_at_the_end(
    label: Label, growing: Path, tmp_path: Path, meanwhile: Any
) -> None:
    scratch = tmp_path / "labels" / TEMPORARY
    meanwhile(LabelStage, "finish", (scratch / f"part.{host()}.{DEAD}.0").touch)
    label(images=str(growing))
    assert list(scratch.iterdir()) == []


def test_of_two_that_unpack_the_same_labels_both_have_them(
    label: Label, growing: Path, tmp_path: Path, unlocked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(images=str(growing))
    plain = label_cache._unpack

    def beaten(*given: Any) -> None:
        monkeypatch.setattr(label_cache, "_unpack", plain)
        plain(*given)
        assert len(label_cache.label_cache(open_labels(tmp_path / "labels"))) == 10

    monkeypatch.setattr(label_cache, "_unpack", beaten)
    assert len(label_cache.label_cache(open_labels(tmp_path / "labels"))) == 10
    assert len(list((tmp_path / "cache" / "labels").iterdir())) == 1


def test_words_leave_nothing_of_a_killed_process(label: Label, growing: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "cache" / "words" / TEMPORARY
    scratch.mkdir(parents=True)
    (scratch / f"key.npz.{host()}.{DEAD}.0").touch()
    label(images=str(growing))
    assert list(scratch.iterdir()) == []


def test_results_side_by_side_and_what_is_left_of_killed_ones(tmp_path: Path) -> None:
    left = [tmp_path / f".a.html.{host()}.{process}.0" for process in (DEAD, os.getpid())]
    for path in left:
        path.touch()
    kind = ResultKind("--out", b"mark")
    check_result(tmp_path / "a.html", kind, [])
    with publish_result(tmp_path / "a.html") as scratch:
        check_result(tmp_path / "b.html", kind, [])
        with publish_result(tmp_path / "b.html") as other:
            other.write_text("b")
        scratch.write_text("a")
    assert (tmp_path / "a.html").read_text() == "a"
    assert {path.name for path in tmp_path.iterdir()} == {"a.html", "b.html", left[1].name}

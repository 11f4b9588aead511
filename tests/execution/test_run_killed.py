"""Runs that are killed, and two at once: nothing is lost, nothing mixed."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from sea_pipeline import open_labels
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage import publish
from tests.support.contents import content
from tests.support.kills import killed_around
from tests.support.programs import Begin, labelling
from tests.support.world import Label, draw_folder, word_file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "photos", 18)


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
@pytest.mark.parametrize("call", range(1, 18))
def test_a_kill_around_any_rename_loses_nothing(
    label: Label, photos: Path, tmp_path: Path, moment: str, call: int
) -> None:
    """Plan, words, dataset, cache, 5 x (data, commit), one quarantine, words.parquet, manifest: 17 renames in a run."""
    (photos / "003.png").write_bytes(b"bad")
    label(images=str(photos), out=tmp_path / "whole")
    shutil.rmtree(tmp_path / "cache")
    with killed_around(publish, "_put_in_place", call, before=moment == "before the rename"):
        label(images=str(photos))
    label(images=str(photos))
    assert content(tmp_path / "labels") == content(tmp_path / "whole")


def test_sigkill_at_random_moments_loses_nothing(label: Label, tmp_path: Path, program: Begin) -> None:
    photos = draw_folder(tmp_path / "photos", 400)
    words = word_file(tmp_path / "colours.txt")
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
    last = program(*command)
    assert last.wait() == 0
    assert "50 of 50 done" in last.stdout
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not list((tmp_path / "killed" / ".tmp").iterdir())


def test_two_runs_of_one_folder_at_once_do_no_harm(label: Label, photos: Path, tmp_path: Path, program: Begin) -> None:
    label(images=str(photos), out=tmp_path / "whole")
    words = word_file(tmp_path / "colours.txt")
    command = labelling(photos, words, tmp_path / "both", "--shard-size", 4)
    both = [program(*command) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert content(tmp_path / "both") == content(tmp_path / "whole")


def test_two_runs_with_other_settings_at_once_never_mix(tmp_path: Path, photos: Path, program: Begin) -> None:
    words = word_file(tmp_path / "colours.txt")
    short = tmp_path / "short.txt"
    short.write_text("\n".join(reversed(words.read_text().split())))
    for number in range(3):
        out = tmp_path / f"out{number}"
        runs = [program(*labelling(photos, wordlist, out)) for wordlist in (words, short)]
        assert sorted(run.wait() for run in runs) == [0, 1]
        assert "holds another run" in "".join(run.stderr for run in runs)
        winner = (words, short)[[run.returncode for run in runs].index(0)]
        assert open_labels(out).words == tuple(winner.read_text().split())
        assert check_files(Ledger.open(out)).problems == []

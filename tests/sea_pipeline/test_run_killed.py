"""Runs that are killed, and two at once: nothing is lost, nothing mixed."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sea_pipeline import open_labels, storage
from sea_pipeline.ledger import Ledger
from sea_pipeline.stage_run import StageRun
from tests.contents import content
from tests.kills import killed_around
from tests.world import draw_folder, word_file

Label = Callable[..., StageRun]


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
    with killed_around(storage, "_appear", call, before=moment == "before the rename"):
        label(images=str(photos))
    label(images=str(photos))
    assert content(tmp_path / "labels") == content(tmp_path / "whole")


def test_sigkill_at_random_moments_loses_nothing(label: Label, tmp_path: Path) -> None:
    photos = draw_folder(tmp_path / "photos", 400)
    words = word_file(tmp_path / "colours.txt")
    label(images=str(photos), out=tmp_path / "whole", shard_size=8)
    command = [sys.executable, "-m", "tests.world", "label", "--images", photos, "--wordlist", words, "--top-n", "3"]
    command += ["--out", tmp_path / "killed", "--shard-size", "8", "--device", "cpu", "--search", "torch"]
    moments = random.Random(0)
    begun = False
    for _ in range(6):
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        process.stderr.readline()  # «labels go to …»: the imports are over
        time.sleep(moments.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        begun |= any((tmp_path / "killed" / "commits").glob("*"))
        assert not (tmp_path / "killed" / "manifest.json").exists()
    assert begun
    last = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    assert "50 of 50 done" in last.stdout
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not list((tmp_path / "killed" / ".tmp").iterdir())


def test_two_runs_of_one_folder_at_once_do_no_harm(label: Label, photos: Path, tmp_path: Path) -> None:
    label(images=str(photos), out=tmp_path / "whole")
    words = word_file(tmp_path / "colours.txt")
    command = [sys.executable, "-m", "tests.world", "label", "--images", photos, "--wordlist", words, "--top-n", "3"]
    command += ["--out", tmp_path / "both", "--shard-size", "4", "--device", "cpu"]
    both = [subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert content(tmp_path / "both") == content(tmp_path / "whole")


def test_two_runs_with_other_settings_at_once_never_mix(tmp_path: Path, photos: Path) -> None:
    words = word_file(tmp_path / "colours.txt")
    short = tmp_path / "short.txt"
    short.write_text("\n".join(reversed(words.read_text().split())))
    for number in range(3):
        out = tmp_path / f"out{number}"
        command = [sys.executable, "-m", "tests.world", "label", "--images", photos, "--top-n", "3", "--out", out]
        runs = [
            subprocess.Popen([*map(str, command), "--wordlist", str(wordlist)], stderr=subprocess.PIPE, text=True)
            for wordlist in (words, short)
        ]
        said = [run.communicate()[1] for run in runs]
        assert sorted(run.returncode for run in runs) == [0, 1]
        assert "holds another run" in "".join(said)
        winner = (words, short)[[run.returncode for run in runs].index(0)]
        assert open_labels(out).words == tuple(winner.read_text().split())
        assert Ledger.open(out).check()[1] == []

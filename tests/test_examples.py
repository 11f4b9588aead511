"""The scripts of examples/ on tiny inputs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.label_and_read import label_and_read
from examples.own_loop import train
from sea_pipeline import open_labels
from sea_pipeline.labels.run import LabelSettings
from tests.support.paths import ROOT
from tests.support.tiny_runs import make_world
from tests.support.world import ColourEncoder, draw, draw_folder


def test_label_and_read(encoder: ColourEncoder, words: Path, tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "red.png", [["red"] * 4] * 3)
    settings = LabelSettings.of(
        images=str(tmp_path / "photos"), out=tmp_path / "labels", wordlist=str(words), top_n=3, device="cpu"
    )
    assert label_and_read(settings) == {"red.png": ["red"]}
    assert label_and_read(settings) == {"red.png": ["red"]}  # a second time from what is there


@pytest.mark.slow
def test_own_loop(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    curve = train(world.model, world.data, tmp_path / "images", world.labels, steps=60, batch=6)
    early, late = curve[:10], curve[-10:]
    assert sum(one for _, one in late) < 0.9 * sum(one for _, one in early)
    assert sum(one for one, _ in late) < sum(one for one, _ in early)


@pytest.mark.slow
def test_slurm_array(words: Path, tmp_path: Path) -> None:
    """Without Slurm: three processes, each with its part of the shards, leave one whole folder."""
    photos = draw_folder(tmp_path / "photos", 9)
    stand_in = tmp_path / "bin" / "sea-pipeline"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.support.world "$@"\n')
    stand_in.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{stand_in.parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "SEA_PIPELINE_CACHE": str(tmp_path / "cache"),
    }
    command = ["bash", str(ROOT / "examples" / "slurm_array.sh"), "3", str(photos), str(tmp_path / "labels")]
    settings: list[Any] = ["--wordlist", words, "--top-n", 3, "--shard-size", 3, "--device", "cpu"]
    done = subprocess.run([*command, *map(str, settings)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(open_labels(tmp_path / "labels")) == 9

"""Fixtures of the tiny world; see world.py."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

from sea_pipeline import cli, label_run
from sea_pipeline.label_run import LabelSettings, StageRun
from tests.world import ColourEncoder, word_file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: side by side with the others they cost little, behind them all of their time."""
    slow = {item.path for item in items if item.get_closest_marker("real")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _offline_with_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEA_PIPELINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> ColourEncoder:
    """The colour encoder, standing in for every encoder spec."""
    colours = ColourEncoder()
    monkeypatch.setattr(label_run, "load_encoder", lambda spec, device, options: colours)
    return colours


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A list of eight colours."""
    return word_file(tmp_path / "colours.txt")


@pytest.fixture
def label(encoder: ColourEncoder, words: Path, tmp_path: Path) -> Callable[..., StageRun]:
    """Labels with the tiny world's settings; any of them can be given."""

    def run(**settings: Any) -> StageRun:
        defaults = {"wordlist": str(words), "top_n": 3, "out": tmp_path / "labels", "shard_size": 4, "device": "cpu"}
        return label_run.label_images(LabelSettings.of(**(defaults | settings)))

    return run


@pytest.fixture
def command(encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sea-pipeline", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run

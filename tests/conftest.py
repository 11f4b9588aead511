"""Fixtures of the tiny world; see world.py."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

from sea_pipeline import cli
from sea_pipeline.core import progress
from sea_pipeline.execution.dispatch import StageRun
from sea_pipeline.labels import run as label_run
from sea_pipeline.labels.run import LabelSettings
from sea_pipeline.search import int8
from sea_pipeline.storage import locks, retry
from tests.support.photo_forms import s3_server
from tests.support.programs import Begin, Program
from tests.support.world import ColourEncoder, Label, Shelved, draw_but_one, word_file
from tests.support.world import main as label_colours

STARTING = {"program", "client", "scheduler"}
"""Fixtures that start processes which compute."""
SLOW = {"s3", "hub", "browser", "finished"}
"""Fixtures of servers, browsers and trained runs, whose tests take long one by one or together."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: side by side with the others they cost little, behind them all of their time."""
    for item in items:
        fixtures = set(item.fixturenames) if isinstance(item, pytest.Function) else set()
        if fixtures & STARTING:
            item.add_marker("processes")
        if fixtures & SLOW:
            item.add_marker("slow")
        if item.get_closest_marker("real") or item.get_closest_marker("processes"):
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("real")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_unconfigure() -> None:
    """So that Python clears away at its end what it always does."""
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _little_to_look_through() -> None:
    """transformers' Trainer collects garbage in every run; what has been imported need not be looked through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _offline_with_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEA_PIPELINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of work that takes seconds would be heard on a slow machine alone."""
    monkeypatch.setattr(progress, "SLOW", 1e6)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's threads for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads: Callable[[int], None]) -> None:
    """Tensors so small only wait for more."""
    threads(1)


@pytest.fixture
def int8_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right everywhere: a processor without VNNI overflows in them, so that `--search int8` is refused there."""

    def exact(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        product = (left.double() @ right.double()).int()
        return product if out is None else out.copy_(product)

    if not int8._are_right(torch.device("cpu")):
        monkeypatch.setattr(torch, "_int_mm", exact)


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
def label(encoder: ColourEncoder, words: Path, tmp_path: Path) -> Label:
    """Labels with the tiny world's settings; any of them can be given."""

    def run(reporter: progress.Reporter = progress.SILENT, **settings: Any) -> StageRun:
        defaults = {"wordlist": str(words), "top_n": 3, "out": tmp_path / "labels", "shard_size": 4, "device": "cpu"}
        return label_run.label_images(LabelSettings.of(**(defaults | settings)), reporter)

    return run


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what many tests read is made once in a process."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def shelved(label: Label, shelf: Path) -> Shelved:
    """Photos, the fourth of them bad, and their labels: `photos` and `labels` of a folder that is to be read alone."""

    def made(count: int, **settings: Any) -> Path:
        root = shelf / "-".join([str(count), *(f"{name}{value}" for name, value in settings.items())])
        if not root.exists():
            draw_but_one(root / "photos", count)
            label(images=str(root / "photos"), out=root / "labels", **settings)
        return root

    return made


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


@pytest.fixture
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begin]:
    """Begins the command line, or another `main`, as a program of its own; see programs.py."""
    begun: list[Program] = []

    def begin(*arguments: object, main: Callable[[], None] = label_colours, file_size: int | None = None) -> Program:
        said = tmp_path_factory.mktemp("program") / "said"
        begun.append(Program(main, arguments, said, file_size))
        return begun[-1]

    yield begin
    for one in begun:
        one.signal()


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has a rival act once, just before the next call of a function."""

    def plant(owner: object, name: str, rival: Callable[[], object]) -> None:
        plain = getattr(owner, name)

        def beaten(*given: Any, **named: Any) -> Any:
            monkeypatch.setattr(owner, name, plain)
            rival()
            return plain(*given, **named)

        monkeypatch.setattr(owner, name, beaten)

    return plant


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system without locks."""
    monkeypatch.setattr(locks.fcntl, "flock", Mock(side_effect=OSError))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server on this machine with the bucket `bucket`, which is what s3:// means as long as it runs."""
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as address:
        yield address


@pytest.fixture
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remote stores are asked again almost at once."""
    monkeypatch.setattr(retry, "WAITS", (0.01, 0.01))


@pytest.fixture
def empty_memory() -> None:
    """memory:// holds nothing of earlier tests."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]

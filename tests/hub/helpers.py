"""What the tests of pushes and of pulls share."""

import signal
from pathlib import Path

import pytest

from sea_pipeline.hub.files import paths_of
from sea_pipeline.output.ledger import Ledger
from tests.hub.stand_in import Hub
from tests.support.programs import Program

NAME = "owner/labels"
URL = f"hf://datasets/{NAME}"
clients_own = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""A warning of huggingface_hub's, over LFS."""


def own(folder: Path) -> dict[str, bytes]:
    """The files that make up a finished folder."""
    ledger = Ledger.open(folder)
    return {path: (folder / path).read_bytes() for path in paths_of(ledger.dataset, ledger.manifest())}


def kill_at(begun: Program, at: int, method: str, path: str, number: int) -> None:
    if number == at:
        begun.signal(signal.SIGKILL)


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but for what is on its way."""
    found = (path for path in folder.rglob("*") if path.is_file() and ".tmp" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def fetched(hub: Hub) -> list[str]:
    """The files that were downloaded."""
    return [path for method, path, _ in hub.asked if method == "GET" and ("/resolve/" in path or "/cdn/" in path)]


def left_beside(folder: Path) -> list[str]:
    """What a pull has left on its way."""
    return [path.name for path in folder.glob(".*")]

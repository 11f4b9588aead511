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


def fetched(hub: Hub) -> list[str]:
    """The files that were downloaded."""
    return [path for method, path, _ in hub.asked if method == "GET" and ("/resolve/" in path or "/cdn/" in path)]


def left_beside(folder: Path) -> list[str]:
    """What a pull has left on its way."""
    return [path.name for path in folder.glob(".*")]

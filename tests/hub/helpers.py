"""What the tests of pushes and of pulls share."""

import signal
from pathlib import Path

from sea_pipeline.hub.files import paths_of
from sea_pipeline.output.ledger import Ledger
from tests.support.programs import Program


def own(folder: Path) -> dict[str, bytes]:
    """The files that make up a finished folder."""
    ledger = Ledger.open(folder)
    return {path: (folder / path).read_bytes() for path in paths_of(ledger.dataset, ledger.manifest())}


def kill_at(begun: Program, at: int, method: str, path: str, number: int) -> None:
    if number == at:
        begun.signal(signal.SIGKILL)

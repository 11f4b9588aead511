"""Files that may not be read are neither lost nor damaged, whatever reads them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sea_pipeline.output.run_files import RunFile, read_run_file
from sea_pipeline.report.runs import kept_views
from tests.support.damage import unreadable
from tests.support.refused import refused
from trainer.model import checkpoints
from trainer.model.borders import border
from trainer.model.tensor_files import read_file
from trainer.targets.codecs import load_codec


def _bordered(path: Path) -> None:
    with border("it cannot be loaded", "restore it"):
        path.read_bytes()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("run.json", lambda path: read_run_file(path, RunFile)),
        ("views.json", lambda path: kept_views(path.parent)),
        ("codec.safetensors", load_codec),
        ("model.safetensors", read_file),
        ("checkpoint-2/files.json", lambda path: checkpoints.latest(path.parent.parent)),
        ("config.json", _bordered),
    ],
)
def test_the_rights_are_missing(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with unreadable(path), refused(f"{path}: ", "Permission denied; give this user the right to read it"):
        read(path)

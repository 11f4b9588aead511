"""The command that installs an extra, which must work to the letter wherever the package came from."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from sea_pipeline.core import extras
from sea_pipeline.core.extras import install_line
from tests.support.paths import ROOT


def test_in_a_clone_it_is_the_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert install_line("demo,train") == "pip install -e '.[demo,train]'"
    monkeypatch.chdir(tmp_path)
    assert install_line("demo") == f"pip install -e '{ROOT}[demo]'"


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        (None, "'sea-pipeline[s3]'"),
        ({"url": "file://{here}/my%20clone", "dir_info": {}}, "'{here}/my clone[s3]'"),
        ({"url": "file://{here}/x.whl", "archive_info": {}}, "'{here}/x.whl[s3]'"),
        ({"url": "file://{here}/gone", "dir_info": {}}, "'.[s3]'"),
        ({"url": "https://h/x.git", "vcs_info": {"vcs": "git"}}, "'sea-pipeline[s3] @ git+https://h/x.git'"),
    ],
)
def test_installed_it_is_what_was_installed(
    noted: dict[str, Any] | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "my clone").mkdir()
    (tmp_path / "x.whl").touch()
    text = noted and json.dumps(noted).replace("{here}", str(tmp_path))
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "sea_pipeline" / "core" / "extras.py"))
    monkeypatch.setattr(extras, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))
    assert install_line("s3") == f"pip install {expected.replace('{here}', str(tmp_path))}"


def test_a_package_that_nobody_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "sea_pipeline" / "core" / "extras.py"))
    monkeypatch.setattr(extras, "distribution", Mock(side_effect=metadata.PackageNotFoundError("none")))
    assert install_line("demo") == "pip install 'sea-pipeline[demo]'"


@pytest.mark.slow
def test_pip_understands_it(tmp_path: Path) -> None:
    """A copy of what pip needs of a clone; the requirement is parsed, and nothing is installed."""
    pip = pytest.importorskip("pip._internal.req.constructors")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    found = pip.install_req_from_line(f"{tmp_path}[demo,train]")
    assert (found.extras, found.link.file_path) == ({"demo", "train"}, str(tmp_path))

"""What the README promises: commands that parse, files that are there, pictures that are small."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image

from sea_pipeline import cli

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
LINES = re.findall(r"^    sea-pipeline +(?!-)(\w.*)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_commands_parse(line: str) -> None:
    name, *arguments = shlex.split(line.partition(" > ")[0], comments=True)
    COMMANDS[name].make_context(name, arguments)


def test_commands_are_found() -> None:
    assert {line.split()[0] for line in LINES} >= {"label", "inspect", "train", "evaluate", "report", "export"}


def test_linked_files_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert "CHANGELOG.md" in links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_pictures_are_small() -> None:
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", TEXT)
    assert len(pictures) == 2
    for said, name in pictures:
        assert len(said) > 20
        assert (ROOT / name).stat().st_size < 300_000
        with Image.open(ROOT / name) as picture:
            assert picture.width > 800

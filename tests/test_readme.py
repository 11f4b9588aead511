"""What the README promises: that a stranger finishes it, on the package index, too, and that what it shows is there."""

import re
import tomllib

from PIL import Image

from hatch_build import on_the_index
from tests.support.paths import ROOT
from tests.support.prose import commands

TEXT = (ROOT / "README.md").read_text("utf-8")
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def test_it_is_short() -> None:
    lines = TEXT.splitlines()
    assert len(lines) <= 165
    assert [line for line in lines if len(line) > 100] == []


def test_every_task_has_its_commands() -> None:
    assert {line.split()[0] for line in commands(TEXT)} >= {"label", "probe", "init", "train", "export", "report"}
    assert "trainer.attach(" in TEXT


def test_pictures_are_small() -> None:
    pictures = re.findall(r"!\[[^\]]{20,}\]\[(\w+)\]", TEXT)
    assert pictures == ["tokens"]
    for picture in pictures:
        (file,) = re.findall(rf"^\[{picture}\]: (\S+)$", TEXT, re.MULTILINE)
        assert (ROOT / file).stat().st_size < 300_000
        with Image.open(ROOT / file) as image:
            assert image.width > 800


def test_the_package_index_gets_absolute_links() -> None:
    text = on_the_index(TEXT, REPOSITORY)
    links = re.findall(r"\]\(([^)]+)\)|^\[\w+\]: (\S+)$", text, re.MULTILINE)
    assert len(links) > 20
    assert all("://" in (inline or reference) for inline, reference in links)
    assert f"({REPOSITORY}/blob/main/docs/label.md)" in text
    assert f"[tokens]: {REPOSITORY}/raw/main/docs/pictures/tokens.webp" in text
    assert "docs/install.md#licences" in text


def test_the_address_is_held_in_one_place() -> None:
    host = REPOSITORY.split("/")[2]
    assert [path for path in ROOT.glob("*.*") if path.is_file() and host in path.read_text("utf-8", "ignore")] == [
        ROOT / "pyproject.toml"
    ]

"""What the README promises: that a stranger finishes it, on the package index, too, and that what it shows is there."""

import re
import tomllib
from pathlib import Path

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
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', TEXT)
    assert [Path(picture).name for picture in pictures] == ["tokens-dark.webp", "tokens-light.webp"]
    assert len(re.findall(r'<img [^>]*alt="[^"]{20,}"', TEXT)) == 1
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 300_000
        with Image.open(ROOT / picture) as image:
            assert image.width > 800


def test_the_package_index_gets_absolute_links() -> None:
    text = on_the_index(TEXT, REPOSITORY)
    links = re.findall(r'\]\(([^)]+)\)|(?:src|srcset)="([^"]+)"', text)
    assert len(links) > 20
    assert all("://" in (link or picture) for link, picture in links)
    assert f"({REPOSITORY}/blob/main/docs/label.md)" in text
    assert f'src="{REPOSITORY}/raw/main/docs/pictures/tokens-light.webp"' in text
    assert f"({REPOSITORY}/blob/main/docs/install.md#licences)" in text


def test_the_address_is_held_in_one_place() -> None:
    host = REPOSITORY.split("/")[2]
    files = [path for path in ROOT.glob("*.*") if path.is_file() and host in path.read_text("utf-8", "ignore")]
    assert files == [ROOT / "pyproject.toml"]

"""What the README promises: commands that parse, files that are there, pictures that are small."""

import re
import shlex
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image

from sea_pipeline import open_labels
from sea_pipeline.cli import app
from tests.support.tiny_tokenizers import llama_like
from tests.support.world import draw_folder

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
COMMANDS: dict[str, Any] = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]
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


PAGES = [
    *ROOT.glob("*.md"),
    *(page for folder in ("docs", "jobs", "wordlists") for page in (ROOT / folder).rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_names_files_that_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link and "mailto:" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"(?<![\w/.])((?:sea_pipeline|trainer|tests|jobs|docs)/[\w/.-]+\.(?:py|yaml|md|j2|jinja))", text)
    assert [name for name in named if "FILE" not in name and not (ROOT / name).exists()] == []


def test_pictures_are_small() -> None:
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", TEXT)
    assert len(pictures) == 2
    for said, name in pictures:
        assert len(said) > 20
        assert (ROOT / name).stat().st_size < 300_000
        with Image.open(ROOT / name) as picture:
            assert picture.width > 800


def test_the_training_loop_of_ones_own(label: Any, tmp_path: Path) -> None:
    """The snippet runs; its loss reaches the drawn patches alone, each with a word of its own."""
    label(images=str(draw_folder(tmp_path / "photos", 6)))
    store = open_labels(tmp_path / "labels")
    (block,) = re.findall(r"In a training loop of your own.*\n((?:\n|    .*\n)+)", TEXT)
    embed = torch.nn.Embedding(600, 16)
    given = {
        "np": np, "store": store, "ids": store.ids[:4], "numbers": [9, 4, 7, 0],
        "visual": torch.randn(4, 12, 16, requires_grad=True),
        "llm": SimpleNamespace(get_input_embeddings=lambda: embed), "tokenizer": llama_like(),
        "seed": 0, "epoch": 0, "step": 3, "log_scale": torch.zeros(()),
    }  # fmt: skip
    exec(textwrap.dedent(block), given)
    given["loss"].backward()
    kept, rows, named = given["kept"], given["rows"], given["named"]
    assert len(kept) == len(set(named.tolist())) > 3
    assert (given["visual"].grad.flatten(0, 1).norm(dim=-1) > 0).nonzero()[:, 0].tolist() == sorted(rows[kept].tolist())
    for row, word in zip(rows[kept], named[kept], strict=True):
        assert word in store[store.ids[row // 12]].word_ids[row % 12]

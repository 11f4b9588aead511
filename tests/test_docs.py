"""What the pages promise: commands that parse, files that are there, keys with their defaults, readers in tests."""

import re
import shlex
import textwrap
from fnmatch import filter as matching
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
import yaml
from PIL import Image
from pydantic import BaseModel

from sea_pipeline import open_labels
from sea_pipeline.cli import app
from sea_pipeline.labels.run import LabelSettings
from tests.readers import table
from tests.readers.table import CHECKS, TESTED
from tests.support.paths import ROOT
from tests.support.tiny_tokenizers import llama_like
from tests.support.world import draw_folder
from trainer.recipes.paper_rows import paper_rows
from trainer.recipes.recipe import PRESETS, Basic, Das, Recipe, Sds, Sea

README = (ROOT / "README.md").read_text("utf-8")
COMMANDS: dict[str, Any] = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]
LINES = re.findall(r"^    sea-pipeline +(?!-)(\w.*)$", README, re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_commands_parse(line: str) -> None:
    name, *arguments = shlex.split(line.partition(" > ")[0], comments=True)
    COMMANDS[name].make_context(name, arguments)


def test_commands_are_found() -> None:
    assert {line.split()[0] for line in LINES} >= {"label", "inspect", "train", "evaluate", "report", "export"}


def test_linked_files_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
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
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", README)
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
    (block,) = re.findall(r"In a training loop of your own.*\n((?:\n|    .*\n)+)", README)
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


PAGE = (ROOT / "docs" / "readings.md").read_text("utf-8")
TABLES = [
    [line.strip("|").split(" | ") for line in table.splitlines()[2:]]
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
]
READINGS = {row[0].strip(): row for row in TABLES[0] + TABLES[1]}
KEY = re.compile(r"`([a-z_]+(?:\.[a-z_]+)*): ([^`]+)`")
KEYS = sorted({found for rows in TABLES for row in rows for cell in row[-2:] for found in KEY.findall(cell)})


def keys(group: dict[str, Any], before: str = "") -> set[str]:
    """The dotted names of a nested mapping's values."""
    parts = (
        keys(value, f"{before}{name}.") if isinstance(value, dict) else {before + name} for name, value in group.items()
    )
    return set().union(*parts)


@pytest.mark.parametrize(("key", "value"), KEYS)
def test_a_key_has_its_default(key: str, value: str) -> None:
    found: Any = Recipe()
    for name in key.split("."):
        assert isinstance(found, BaseModel)
        assert name in type(found).model_fields
        found = getattr(found, name)
    assert (found, type(found)) == (yaml.safe_load(value), type(yaml.safe_load(value)))


def test_every_row_is_whole() -> None:
    assert [len(rows) for rows in TABLES[:2]] == [22, 15]
    assert {len(row) for row in READINGS.values()} == {5}
    assert list(READINGS) == [f"S{number}" for number in range(1, 23)] + [f"B{number}" for number in range(1, 16)]
    assert all(cell.strip() for row in READINGS.values() for cell in row)


def test_every_key_that_an_open_question_has_is_there() -> None:
    groups: dict[str, type[BaseModel]] = {"sea": Sea, "das": Das, "sds": Sds, "basic": Basic}
    open_to_choice = {f"loss.{name}.{field}" for name, group in groups.items() for field in group.model_fields}
    assert {key for key, _ in KEYS} >= open_to_choice - {"loss.sds.precision"}  # a matter of speed


def test_the_preset_is_what_the_page_says() -> None:
    (said,) = re.findall(r"`preset: paper` sets ([^.]*?) and trains on whole\s+photos", PAGE)
    chosen = [READINGS[number] for number in re.findall(r"S\d+", said)]
    assert {key for row in chosen for key, _ in KEY.findall(row[3])} >= keys(PRESETS["paper"]) - {"data.random_crop"}


def test_names_of_rows_and_files_are_there() -> None:
    rows = paper_rows()
    patterns = re.findall(r"`((?:sea|basic)-[a-z0-9]+-\*)`", PAGE)
    assert len(patterns) == 5
    assert all(matching(rows, pattern) for pattern in patterns)
    files = re.findall(r"jobs/[a-z0-9.-]+\.yaml", PAGE)
    files += re.findall(r"\]\(\.\./([^)#]+)", PAGE)
    assert len(files) > 5
    assert all((ROOT / file).is_file() for file in files)


def test_the_commands_default() -> None:
    assert f"`label --template {LabelSettings().template}`" in READINGS["S14"][3]


READERS = (ROOT / "docs" / "readers.md").read_text("utf-8")


def lines() -> list[list[str]]:
    """The table's lines, without the rule below the first."""
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in READERS.splitlines() if line.startswith("|")]
    return [found[0], *found[2:]]


def test_the_columns_are_what_is_looked_at() -> None:
    assert lines()[0] == ["reader", *CHECKS, "shown by"]


def test_a_line_says_ok_where_a_test_does() -> None:
    said = {reader: cells for reader, *cells in lines()[1:]}
    assert said.keys() >= TESTED.keys()
    for reader, checks in TESTED.items():
        *cells, shown = said[reader]
        assert {check for check, cell in zip(CHECKS, cells, strict=True) if cell == "ok"} == set(checks), reader
        assert all(cells)
        assert reader_is_named(ROOT / shown.strip("`"), reader)


def reader_is_named(file: Path, reader: str) -> bool:
    """Whether the file takes its cells from the reader's line of the table."""
    names = [name for name, value in vars(table).items() if value == reader and name.isupper()]
    return any(name in file.read_text("utf-8").partition("cells(")[2] for name in names)

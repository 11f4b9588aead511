"""What two tables of the pages promise: keys with their defaults, readers in tests."""

import re
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from sea_pipeline.labels.run import LabelSettings
from tests.readers import table
from tests.readers.table import CHECKS, TESTED
from tests.support.paths import ROOT
from trainer.recipes.paper_rows import paper_rows
from trainer.recipes.recipe import PRESETS, Basic, Das, Recipe, Sds, Sea

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
    assert len(files) >= 5
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

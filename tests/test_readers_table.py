"""That docs/readers.md says of each reader what tests show, and names them."""

from pathlib import Path

from tests.readers import table
from tests.readers.table import CHECKS, TESTED
from tests.support.paths import ROOT

TEXT = (ROOT / "docs" / "readers.md").read_text("utf-8")


def lines() -> list[list[str]]:
    """The table's lines, without the rule below the first."""
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines() if line.startswith("|")]
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

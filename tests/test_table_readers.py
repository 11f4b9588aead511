"""That programs which know nothing of this package read the tables of output folders as pyarrow does, row for row."""

from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaging.version import Version

from tests.support.paths import ROOT
from tests.support.planted_targets import teach
from tests.support.table_readers import OTHERS, TESTED, difference, tables
from tests.support.world import Shelved

PAGE = ROOT / "docs" / "label-format.md"


@pytest.fixture(autouse=True)
def _new_enough(request: pytest.FixtureRequest) -> None:
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name", "")
    if str(name).startswith("datasets") and Version(version("datasets")) < Version("5.1"):
        pytest.skip("datasets older than 5.1 has no type for 32 bytes")


@pytest.fixture
def labels(shelved: Shelved) -> Path:
    return shelved(40, shard_size=36, max_bad=1.0) / "labels"


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_a_reader_reads_labels(labels: Path, name: str) -> None:
    """Shards of one row group and of two, quarantine, the plan and the words' means."""
    found = tables(labels)
    assert [path.name for path in found] == [
        *("part-00000-of-00002.parquet", "part-00001-of-00002.parquet", "plan.parquet", "00000.parquet"),
        "words.parquet",
    ]
    assert pq.read_metadata(found[0]).num_row_groups == 2
    _, read = TESTED[name]
    assert {path.name: difference(path, read) for path in found} == dict.fromkeys(path.name for path in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_a_reader_reads_targets(tmp_path: Path, name: str) -> None:
    _, read = TESTED[name]
    found = tables(teach(tmp_path / "targets"))
    assert len(found) == 5
    assert {path.name: difference(path, read) for path in found} == dict.fromkeys(path.name for path in found)


@pytest.mark.slow
def test_what_is_read_wrongly_is_found(labels: Path) -> None:
    path = tables(labels)[0]
    rows = pq.read_table(path).to_pylist()
    scores = [*rows[2]["scores"][:-1], 0.5]
    for harm, said in (
        (lambda: rows[:-1], "expected 35 rows, found 34"),
        (lambda: [*rows[:2], rows[2] | {"scores": scores}, *rows[3:]], "row 2, scores: expected ["),
        (lambda: [*rows[:2], rows[2] | {"scores": scores[1:]}, *rows[3:]], "row 2, scores: expected ["),
        (lambda: [rows[0] | {"image_sha256": b""}, *rows[1:]], "row 0, image_sha256: expected b"),
        (lambda: [{"scores": None}], "expected 35 rows, found 1"),
        (lambda: [dict.fromkeys(rows[0]), *rows[1:]], "row 0, image_id: expected "),
        (lambda: [{"id": 1}, *rows[1:]], "expected the columns image_id, uri, "),
    ):
        assert (difference(path, lambda _, harm=harm: harm()) or "").startswith(said)


def test_shards_hold_no_type_that_some_readers_lack(labels: Path, tmp_path: Path) -> None:
    """Spark, which the tests do not start, refuses float16."""
    read = {"string", "fixed_size_binary[32]", "int32", "uint16", "float", "double", "int64"}
    for path in [*tables(labels), *tables(teach(tmp_path / "targets"))]:
        for field in pq.read_schema(path):
            kind = field.type.value_type if pa.types.is_fixed_size_list(field.type) else field.type
            assert str(kind) in read or pa.types.is_fixed_size_binary(kind), f"{path.name}: {field}"


def test_the_documentation_has_a_line_for_each() -> None:
    text = PAGE.read_text("utf-8")
    lines = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    said = {reader.strip().rpartition(" ")[0]: cell.strip() for reader, cell in lines}
    assert {name: said[name] for name in TESTED} == dict.fromkeys(TESTED, "ok")
    assert {name for name in OTHERS if name not in said} == set()

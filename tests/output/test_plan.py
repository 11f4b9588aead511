"""The plan file is opened for every shard, and its footer parsed once."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sea_pipeline.inputs.samples import Sample
from sea_pipeline.output import plan
from sea_pipeline.storage import parquet
from sea_pipeline.storage.paths import place
from tests.support.worker_world import planted_ledger

pytestmark = pytest.mark.usefixtures("empty_memory")
IMAGES, SIZE = 23, 2


def expected(shard: int) -> list[Sample]:
    names = [f"{number:03d}.png" for number in range(IMAGES)][shard * SIZE : (shard + 1) * SIZE]
    return [Sample(name, name) for name in names]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the footer was parsed, at each opening of a plan."""
    seen: list[bool] = []
    plain = parquet._parquet_file

    def opened(source: Any, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
        seen.append(footer is None)
        return plain(source, footer)

    monkeypatch.setattr(parquet, "_parquet_file", opened)
    return seen


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_the_footer_of_a_plan_is_parsed_once(tmp_path: Path, parsed: list[bool], where: str) -> None:
    ledger = planted_ledger(tmp_path / "out" if where == "here" else place("memory://out"), IMAGES, SIZE)
    parsed.clear()
    for shard in (0, 11, 5, 0):
        assert ledger.samples(shard) == expected(shard)
    assert parsed == [True, False, False, False]
    sent = pickle.loads(pickle.dumps(ledger))
    assert sent.samples(7) == expected(7)
    assert parsed[4:] == [True]


def test_a_plan_that_was_written_again_is_read_again(tmp_path: Path, parsed: list[bool]) -> None:
    ledger = planted_ledger(tmp_path / "out", IMAGES, SIZE)
    ledger.samples(0)
    samples = [sample for shard in range(12) for sample in expected(shard)]
    other = [sample._replace(uri="moved/" + sample.uri) for sample in samples]
    plan.write_plan(tmp_path / "new", other, SIZE)
    (tmp_path / "new").replace(tmp_path / "out" / "plan.parquet")
    parsed.clear()
    assert ledger.samples(3) == other[6:8]
    assert parsed == [True]

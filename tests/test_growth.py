"""What `python -m tests.bench.growth` measures and fits."""

from pathlib import Path

import pytest

from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.verify import check_files
from sea_pipeline.storage.paths import place
from tests.bench import growth


@pytest.mark.parametrize("planted", [0.5, 1.0, 1.5, 2.0])
def test_a_planted_exponent_is_found(planted: float) -> None:
    sizes = [1e3, 1e4, 1e5, 1e6]
    assert growth.exponent(sizes, [2 + 3e-3 * size**planted for size in sizes]) == pytest.approx(planted, abs=0.02)


def test_what_does_not_grow_has_no_exponent() -> None:
    assert growth.exponent([1, 2, 4, 8], [1.0, 1.1, 1.05, 1.15]) == 0.0


def test_steps_of_a_folder_end_with_one_that_opens(tmp_path: Path) -> None:
    growth.links(tmp_path, 2_050)
    for step in growth.CURVES[0].steps:
        step(tmp_path, 2_050)
    checked = check_files(Ledger.open(place(tmp_path / "labels")))
    assert checked.finished
    assert not checked.problems
    assert not checked.missing

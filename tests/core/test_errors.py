"""What another library's exception says, in a line of ours."""

import pytest

from sea_pipeline.core.errors import MOST, one_line


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (ValueError("while parsing\n  a mapping\n\tline 3"), "while parsing a mapping line 3"),
        (RuntimeError(), "RuntimeError"),
        (OSError("  \n"), "OSError"),
        (ValueError("x" * MOST), "x" * MOST),
        (ValueError("x" * (MOST + 1)), "x" * (MOST - 1) + "…"),
    ],
)
def test_one_line(problem: Exception, line: str) -> None:
    assert one_line(problem) == line

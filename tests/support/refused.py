"""What a user is told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sea_pipeline.core.errors import UserError


@contextmanager
def refused(*parts: str, start: str = "", match: str | None = None) -> Iterator[None]:
    """Expects a `UserError` of one line, which holds all parts, begins with `start` and matches a pattern."""
    with pytest.raises(UserError, match=match) as error:
        yield
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(start)
    for part in parts:
        assert part in line

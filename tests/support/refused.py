"""What a user is told in one line, and what a command prints."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


def refuses(command: Any, said: str, *arguments: object, start: str = "error: ") -> str:
    """Runs the command line, which ends in one line that holds `said` and begins with `start`; returns the line."""
    code, _, stderr = command(*arguments)
    assert (code, stderr.count("\n")) == (1, 1), stderr
    assert stderr.startswith(start), stderr
    assert said in stderr
    return str(stderr)


def ran(command: Any, *arguments: object) -> str:
    """Runs the command line, which ends well; returns what it prints."""
    code, stdout, stderr = command(*arguments)
    assert code == 0, stderr
    return str(stdout)

"""What may come out of a trial, and what may not.

Labels, a row of the quarantine, a line that says what was left out, or one line on what is wrong: all else is a fault.
"""

import io
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

from sea_pipeline import cli
from sea_pipeline.cli.app import FAILED_SHARDS
from sea_pipeline.core.errors import UserError

TRACEBACK, LOSS, UNCLEAR, CRASH, HANG = "traceback", "silent loss", "unclear", "crash", "hang"
FAULTS = (TRACEBACK, LOSS, UNCLEAR, CRASH, HANG)
"""The last two are seen from outside alone; see `tests.bench.fuzz`."""
REFUSED = "refused"
"""What comes of a trial that ends in one clear line."""

_Value = TypeVar("_Value")


class FaultError(Exception):
    """What must not come out of a trial."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Ended(NamedTuple):
    """What a command left: its exit code, and what it said."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """What it says is wrong; empty if nothing is."""
        return next((line for line in self.err.splitlines() if line.startswith("error: ")), "")


def command(*arguments: object) -> Ended:
    """Runs the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["sea-pipeline", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        except Exception as error:
            raise FaultError(TRACEBACK, f"{argv[1]}: {_last_frames(error)}") from error
    return judged(Ended(int(code), out.getvalue(), err.getvalue()), argv[1:])


def judged(ended: Ended, arguments: list[str]) -> Ended:
    """The same, if it ended as commands may: done, or with one clear line.

    Raises:
        FaultError: it did not.
    """
    shown = f"{arguments[0]}: exit {ended.code}: {ended.err[-1500:]!r}"
    if "Traceback" in ended.err:
        raise FaultError(TRACEBACK, shown)
    if ended.code == FAILED_SHARDS:
        if "PassingError: " not in ended.out:  # the network's, each named with its shard
            raise FaultError(TRACEBACK, f"a shard failed; {shown}; {ended.out[-1000:]}")
        return ended
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.code == 0 and not lines:
        return ended
    if ended.code not in (1, 2) or not lines or (len(lines) > 1 and arguments[0] != "verify"):
        raise FaultError(UNCLEAR, shown)
    for line in lines:
        is_clear(line.removeprefix("error: "))
    if not ended.err.splitlines()[-1].startswith("error: "):
        raise FaultError(UNCLEAR, f"the last line is not the error's; {shown}")
    return ended


def is_clear(line: str) -> None:
    """Whether a line is one, and names a file, an option or a key."""
    if "\n" in line or not line.strip() or not any(mark in line for mark in ("/", "--", ": ")) or len(line) > 2500:
        raise FaultError(UNCLEAR, f"{line[:1500]!r}")


@contextmanager
def telling(what: str) -> Iterator[list[str]]:
    """Holds a call of a function behind a command to the same: it may raise a UserError, which is put in the list."""
    lines: list[str] = []
    try:
        yield lines
    except UserError as problem:
        is_clear(str(problem))
        lines.append(str(problem))
    except FaultError:
        raise
    except Exception as error:
        raise FaultError(TRACEBACK, f"{what}: {_last_frames(error)}") from error


def told(what: str, call: Callable[[], _Value]) -> _Value | str:
    """What a function behind a command gives, or the one line that it ends in."""
    found: list[_Value] = []
    with telling(what) as lines:
        found.append(call())
    return lines[0] if lines else found[0]


def lost(text: str) -> FaultError:
    return FaultError(LOSS, text)


def _last_frames(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__}: {error!s:.300}; {where}"

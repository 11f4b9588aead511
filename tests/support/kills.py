"""Kills inside this process at a chosen call, and the processes that must go when another one is killed."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DEAD = 2**22 + 1
"""No process has this number."""


class Killed(BaseException):
    """Stands for SIGKILL inside this process: nothing may catch it."""


@contextlib.contextmanager
def killed_around(owner: object, method: str, call: int, *, before: bool) -> Iterator[None]:
    """Kills its block just before or just after the `call`-th call of a function, which the block must come to."""
    plain, calls = getattr(owner, method), 0

    counting = threading.Lock()

    def deadly(*given: Any, **options: Any) -> Any:
        nonlocal calls
        with counting:  # threads may call it at once
            calls += 1
            mine = calls
        if mine == call and before:
            raise Killed
        result = plain(*given, **options)
        if mine == call:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, deadly)
        with pytest.raises(Killed):
            yield


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and those that they have."""
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        own = {int(child) for task in tasks for child in task.read_text().split()}
        return own.union(*map(descendants, own))
    return set()

"""Let threads take turns at stores whose clients in fsspec do one thing at a time."""

import os
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem

_INDEPENDENT = ("memory", ("file", "local"), "hf")
"""Protocols of clients that are not asynchronous, and open a file anew for each reader."""
_LOCKS: list[threading.RLock] = []
"""The one of all stores that do one thing at a time, and behind it one for a file each, by the hash of its path."""


def _make_locks() -> None:
    _LOCKS[:] = [threading.RLock() for _ in range(65)]


_make_locks()
if hasattr(os, "register_at_fork"):  # a thread that the child has not may have held one
    os.register_at_fork(after_in_child=_make_locks)


def innermost(fs: Any) -> Any:  # noqa: ANN401 - fsspec has no types
    """Return the client of the store that caches read from, or `fs` itself if it is no cache."""
    while isinstance(inner := getattr(fs, "fs", None), AbstractFileSystem):
        fs = inner
    return fs


def reads_at_once(fs: Any) -> bool:  # noqa: ANN401
    """Tell whether threads may read different files of a store at once.

    An archive has one position in its file, and FTP, SFTP and SMB have one connection. Every cache but simplecache
    writes its list of all files whenever it fetches one.
    """
    while isinstance(inner := getattr(fs, "fs", None), AbstractFileSystem):
        if type(fs).protocol != "simplecache":
            return False
        fs = inner
    return isinstance(fs, AsyncFileSystem) or type(fs).protocol in _INDEPENDENT


def turn(fs: Any, path: str) -> AbstractContextManager[object]:  # noqa: ANN401
    """Return what a thread holds while it uses a file of a store."""
    if not reads_at_once(fs):
        return _LOCKS[0]
    # simplecache takes a file for whole that another thread is still fetching.
    return nullcontext() if innermost(fs) is fs else _LOCKS[1 + hash(path) % (len(_LOCKS) - 1)]

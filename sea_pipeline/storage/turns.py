"""Let threads take turns at stores whose clients in fsspec do one thing at a time, and connect those anew."""

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem

from sea_pipeline.storage.clients import innermost, refuse_lost_file
from sea_pipeline.storage.retry import may_pass, patiently

_Result = TypeVar("_Result")

_INDEPENDENT = ("memory", ("file", "local"), "hf")
"""Protocols of clients that are not asynchronous, and open a file anew for each reader."""
_CONNECTED = {"ftp", "sftp", "ssh", "smb"}
"""Protocols whose clients connect once, when they are made."""
_NEWEST, _LOST = "_sea_pipeline_newest", "_sea_pipeline_lost"
"""Attributes of such a client: the one whose connection it uses, which is open as long as that one exists; and whether
that connection may be lost."""
_LOCKS: list[threading.RLock] = []
"""The one of all stores that do one thing at a time, and behind it one for a file each, by the hash of its path."""


def _make_locks() -> None:
    _LOCKS[:] = [threading.RLock() for _ in range(65)]


_make_locks()
if hasattr(os, "register_at_fork"):  # a thread that the child has not may have held one
    os.register_at_fork(after_in_child=_make_locks)


def reads_at_once(fs: Any) -> bool:  # noqa: ANN401 - fsspec has no types
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


def patiently_in_turn(fs: Any, path: str, action: Callable[[], _Result], shown: str) -> _Result:  # noqa: ANN401
    """Call `patiently`, each time in this thread's turn, and after a fault with a new connection.

    Args:
        fs: the client that `action` uses.
        path: the file.
        action: makes the request.
        shown: the file, as a message calls it.
    """
    client = innermost(fs)
    named = type(client).protocol
    connects = not _CONNECTED.isdisjoint([named] if isinstance(named, str) else named)

    def in_turn() -> _Result:
        with turn(fs, path):
            if vars(client).get(_LOST):
                _connect_anew(client)
            try:
                return _found(fs, path, action)
            except Exception as error:
                if connects and may_pass(error):  # whoever has the next turn connects, so that it fails in none
                    vars(client)[_LOST] = True
                raise

    return patiently(in_turn, shown)


def _found(fs: Any, path: str, action: Callable[[], _Result]) -> _Result:  # noqa: ANN401
    try:
        return action()
    except FileNotFoundError:
        refuse_lost_file(fs, path)
        raise


def _connect_anew(client: Any) -> None:  # noqa: ANN401
    """Give a client of `_CONNECTED` a new connection.

    Caches and paths hold the client itself, so it takes over what a new one has.
    """
    new = type(client)(*client.storage_args, **client.storage_options, skip_instance_cache=True)
    vars(client).update(vars(new) | {_NEWEST: new, _LOST: False})

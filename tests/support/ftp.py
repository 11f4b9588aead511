"""An FTP server in this process, which fails as it is told: what ftplib gives fsspec."""

import ftplib
from collections.abc import Callable, Iterator
from typing import Any

import pytest


class Server:
    """Serves `files`, by their whole paths. `faults` are raised by the next requests of a kind, `MLSD` or `RETR`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Exception | None]] = {}
        self.connections = 0

    def fail(self, kind: str) -> Exception | None:
        """What becomes of one more request."""
        left = self.faults.get(kind, [])
        return left.pop(0) if left else None


def serve(monkeypatch: pytest.MonkeyPatch) -> Server:
    """Let fsspec's client of `ftp://` find a server."""
    server = Server()

    class Client(ftplib.FTP):
        """One connection. After a fault that is no reply of the server, it stays broken."""

        broken = False

        def connect(self, *_: Any, **__: Any) -> str:
            server.connections += 1
            return ""

        def login(self, *_: Any, **__: Any) -> str:
            return ""

        def mlsd(self, path: str = "", facts: Any = None) -> Iterator[tuple[str, dict[str, str]]]:
            self._answer("MLSD")
            top = f"{path.rstrip('/')}/"
            below = {name: data for name, data in server.files.items() if name.startswith(top)}
            for name in sorted({name[len(top) :].partition("/")[0] for name in below}):
                data = below.get(top + name)
                yield name, {"type": "dir"} if data is None else {"type": "file", "size": str(len(data))}

        def retrbinary(
            self, cmd: str, callback: Callable[[bytes], object], blocksize: int = 0, rest: Any = None
        ) -> str:
            self._answer("RETR")
            data = server.files.get(cmd.removeprefix("RETR "))
            if data is None:
                raise ftplib.error_perm("550 No such file or directory.")
            callback(data[rest or 0 :])
            return ""

        def abort(self) -> str:
            return ""

        def getmultiline(self) -> str:
            return ""

        def _answer(self, kind: str) -> None:
            if self.broken:
                raise BrokenPipeError
            if fault := server.fail(kind):
                self.broken = not isinstance(fault, ftplib.Error)
                raise fault

    monkeypatch.setattr("fsspec.implementations.ftp.FTP", Client)
    return server

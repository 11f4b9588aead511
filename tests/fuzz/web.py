"""Inputs that are read over HTTP, from a server on this machine that fails now and then."""

import functools
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

from tests.fuzz.worlds import Case, World
from tests.support.loopback import Handler, Loopback
from tests.support.photo_forms import write_list, write_parquet, write_tars

LASTING, PASSING = (400, 401, 403, 404, 410, 451), (429, 500, 502, 503)
ODD = ("cut", "empty", "<html><body>Please sign in</body></html>", "reset")
"""What else a server does in place of an answer: one that breaks off, is empty, is a page, is none."""
Faults = dict[str, tuple[int, int | str]]
"""By path: from which request on, and which status or oddity it is answered with."""


class Server(Loopback):
    """Serves a folder; `faults` is what it does instead. With `parts`, it sends parts of files, too."""

    def __init__(self, folder: Path, faults: Faults, parts: bool = True) -> None:
        super().__init__(functools.partial(_Handler, directory=str(folder)))
        self.faults, self.asked, self.lock, self.parts = faults, dict[str, int](), threading.Lock(), parts
        self.failed: set[str] = set()
        self.says_length = True
        self.most = 1 << 60
        """The most bytes of a part that it sends at once."""
        self.says_total = True
        self.raw: list[str] = []

    def fault(self, path: str) -> int | str | None:
        """What becomes of one more request; those that may pass do so after two."""
        with self.lock:
            self.asked[path] = number = self.asked.get(path, 0) + 1
            first, what = self.faults.get(path, (0, ""))
            if not what or number < first or (what in PASSING and number > first + 1):
                return None
            self.failed.add(path)
            return what


class _Handler(Handler, SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.raw.append(self.path)
        what = self.server.fault(unquote(self.path.partition("?")[0]).lstrip("/"))
        if isinstance(what, int):
            self.send_error(what)
        elif what == "reset":
            self.close_connection = True
            self.connection.close()
        elif what and what.startswith("<"):
            self._answer(200, what.encode())
        elif self.server.parts and (path := Path(self.translate_path(self.path))).is_file():
            self._file(path, what)
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        if self.server.parts:
            self.do_GET()
        else:
            super().do_HEAD()

    def _file(self, path: Path, what: str | None) -> None:
        data, status = b"" if what == "empty" else path.read_bytes(), 200
        total, headers = len(data), {}
        if what is None and self.server.says_length and (asked := self.headers.get("Range")):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            if int(first or 0) >= total:
                self._answer(416, b"")
                return
            end = min(total - 1, int(last) if last else total - 1, int(first) + self.server.most - 1)
            data, status = data[int(first) : end + 1], 206
            headers["Content-Range"] = f"bytes {first}-{end}/{total if self.server.says_total else '*'}"
        self._answer(status, data, broken=what == "cut", **headers)

    def _answer(self, status: int, data: bytes, broken: bool = False, **headers: str) -> None:
        self.send_response(status)
        if self.server.says_length:
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Accept-Ranges", "bytes")
        else:
            self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if broken else data)
        self.close_connection = broken or not self.server.says_length


@contextmanager
def served(folder: Path, faults: Faults, *, parts: bool = True) -> Iterator[Server]:
    """A server of a folder, on loopback."""
    from fsspec.implementations.http import HTTPFileSystem

    with Server(folder, faults, parts) as server:
        try:
            yield server
        finally:
            HTTPFileSystem.clear_instance_cache()


_ASKED: list[tuple[str, list[str]]] = [
    *(("photos", []), ("list.csv", ["photos/"]), ("x.parquet", [])),
    *(("t/photos-{000..002}.tar", []), ("t/photos-001.tar", []), ("t/*.tar", [])),
]
"""What `--images` is, and what else is read for it."""


def web(world: World, folder: Path, random: random.Random) -> str:
    """A folder of images, a list of them, tars or a table, at a server that refuses or fails in the middle."""
    pages = folder / "pages"
    pages.mkdir()
    (pages / "photos").symlink_to(world.folder)
    write_list(pages / "list.csv", [{"path": name} for name in world.photos])
    write_tars(pages / "t", world.photos)
    write_parquet(pages / "x.parquet", world.photos)
    images, named = random.choice(_ASKED)
    files = [path.relative_to(pages).as_posix() for part in pages.iterdir() for path in _below(part)]
    parts = {images.partition("/")[0], *(name.rstrip("/") for name in named)}
    asked = [name for name in files if name.partition("/")[0] in parts]
    faults: Faults = {
        name: (random.choice((1, 1, 2, 3, 4)), random.choice((*LASTING, *PASSING, *ODD)))
        for name in random.sample([*asked, "photos/", "t/"], random.choice((0, 1, 1, 2)))
    }
    with served(pages, faults) as server:
        options = ("--image-root", f"{server.url}/photos") if named else ()
        case = Case(f"{server.url}/{images}", f"{images}: {faults}", {}, options=options)
        rest = world.photos if images in ("photos", "list.csv") else {}
        rest = {name: data for name, data in rest.items() if f"photos/{name}" not in faults}
        listed_wrongly = any(name.endswith("/") and what in ODD for name, (_, what) in faults.items())
        end = world.judge(case._replace(untouched={} if listed_wrongly else rest), folder / "out")
    if not server.failed and images in ("photos", "list.csv", "t/photos-{000..002}.tar", "x.parquet"):
        assert end == "labelled", (case, end)  # the fuzzer's own mistake
    return end


def _below(path: Path) -> list[Path]:
    """The files of a folder by their names in it; a link to a folder is gone through."""
    return [path] if path.is_file() else [below for below in path.rglob("*") if below.is_file()]


KINDS = {"web": web}

"""Images and labels on servers that a client connects to once: FTP, SFTP, SMB, WebDAV."""

import ftplib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import pytest
from fsspec.registry import _registry

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.pixels import BadImageError
from sea_pipeline.inputs.sources import list_samples, open_source
from sea_pipeline.storage import retry
from sea_pipeline.storage.paths import place
from tests.support import ftp
from tests.support.contents import read_all, rows
from tests.support.refused import refused
from tests.support.world import Label, Shelved

pytestmark = pytest.mark.usefixtures("no_long_waits")
BUSY = ftplib.error_temp("450 File busy.")
PHOTOS = {"a.png": b"A" * 9, "b/c.png": b"C" * 300_000}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ftp.Server:
    server = ftp.serve(monkeypatch)
    server.files = {f"/photos/{name}": data for name, data in PHOTOS.items()}
    return server


@pytest.mark.parametrize(("kind", "before"), [("MLSD", 0), ("MLSD", 1), ("MLSD", 2), ("RETR", 0), ("RETR", 1)])
@pytest.mark.parametrize("fault", [BUSY, EOFError(), BrokenPipeError()])
def test_a_fault_of_ftp_passes_and_a_lost_connection_is_opened_again(
    server: ftp.Server, kind: str, before: int, fault: Exception
) -> None:
    server.faults[kind] = [*[None] * before, fault]
    assert read_all(list_samples("ftp://host/photos")) == PHOTOS
    assert server.faults[kind] == []


def test_a_file_that_ftp_could_not_list_just_now_is_no_absent_one(server: ftp.Server) -> None:
    source = open_source("ftp://host/photos")
    server.faults["MLSD"] = [BUSY]
    assert source.read("b/c.png") == PHOTOS["b/c.png"]
    with pytest.raises(BadImageError, match="no such file in ftp://host/photos"):
        source.read("b/gone.png")


@pytest.mark.parametrize("before", range(5))
def test_labels_that_ftp_could_not_list_just_now_are_no_absent_ones(server: ftp.Server, before: int) -> None:
    folder = place("ftp://host/photos")
    file = folder / "b" / "c.png"

    def whole() -> bytes:
        with file.open() as opened:
            return opened.read()

    asked: list[tuple[Callable[[], object], object]] = [
        (file.is_file, True),
        (lambda: file.stat().st_size, 300_000),
        (whole, PHOTOS["b/c.png"]),
        (lambda: sorted(path.name for path in folder.iterdir()), ["a.png", "b"]),
        ((folder / "gone").exists, False),
    ]
    for ask, answer in asked:
        server.faults["MLSD"] = [*[None] * before, BUSY]
        assert ask() == answer


def test_a_folder_that_ftp_goes_on_not_listing_is_one_line(server: ftp.Server) -> None:
    server.faults["MLSD"] = [None, *[BUSY] * 99]
    with refused("cannot be listed", "450 File busy.", start="ftp://host/photos: "):
        list_samples("ftp://host/photos")


def test_labels_are_read_by_ftp(server: ftp.Server, shelved: Shelved) -> None:
    here = shelved(9) / "labels"
    server.files = {f"/x/{file.relative_to(here)}": file.read_bytes() for file in here.rglob("*") if file.is_file()}
    server.faults["RETR"] = [BrokenPipeError()]
    assert rows(open_labels("ftp://me@host:2121/x")) == rows(open_labels(here))
    lost = "/x/labels/part-00000-of-00003.parquet"
    assert server.files.pop(lost)
    with refused("found none", start=f"ftp://me@host:2121{lost}: "):
        open_labels("ftp://me@host:2121/x")
    with pytest.raises(FileNotFoundError):
        place(f"ftp://host{lost}").read_bytes()


@pytest.mark.parametrize("url", ["ftp://h/x", "sftp://h/x", "smb://h/share/x", "webdav://x", "simplecache::SSH://h/x"])
def test_a_store_that_shows_half_a_file_is_not_written(label: Label, tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match=r"a store that writes whole files, such as s3://; found [a-z]+://; choose"):
        label(images=str(tmp_path), out=url)


class Dropping(fsspec.AbstractFileSystem):
    """A client that takes no options that it does not know, and never connects again, like paramiko's."""

    protocol = "sftp"
    made = 0

    def __init__(self, host: str, **options: Any) -> None:
        assert not options
        super().__init__()
        type(self).made += 1
        self.left = 3 if type(self).made == 1 else 99

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("sftp://host").strip("/")

    @staticmethod
    def _get_kwargs_from_urls(url: str) -> dict[str, str]:
        return {"host": "host"}

    def _asked(self) -> fsspec.AbstractFileSystem:
        self.left -= 1
        if self.left < 0:
            raise OSError("Socket is closed")
        return fsspec.filesystem("memory")

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        return self._asked().ls(path, detail=detail)

    def info(self, path: str, **_: Any) -> Any:
        return self._asked().info(path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> Any:
        return self._asked().cat_file(path, start=start, end=end)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    def register(protocol: str, client: type) -> None:
        monkeypatch.setitem(_registry, protocol, client)

    return register


@pytest.mark.usefixtures("empty_memory")
def test_a_connection_that_was_lost_is_opened_again_once(registered: Any) -> None:
    registered("sftp", Dropping)
    Dropping.made = 0
    for name, data in PHOTOS.items():
        fsspec.filesystem("memory").pipe_file(f"/photos/{name}", data)
    source = open_source("sftp://host/photos")
    for _ in range(5):
        assert {name: source.read(name) for name in PHOTOS} == PHOTOS
    assert Dropping.made == 2
    folder = place("sftp://host/photos")
    assert (str(folder), str(folder / "a.png")) == ("sftp://host/photos", "sftp://host/photos/a.png")
    assert [(folder / name).read_bytes() for name in PHOTOS] == list(PHOTOS.values())
    assert not (folder / "gone").exists()


@pytest.mark.usefixtures("empty_memory")
def test_a_connection_that_one_reader_has_lost_fails_no_other(registered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = type("Anew", (Dropping,), {"made": 0})  # fsspec keeps the clients of a class
    registered("sftp", client)
    waits = []
    for name, data in PHOTOS.items():
        fsspec.filesystem("memory").pipe_file(f"/photos/{name}", data)
    source = open_source("sftp://host/photos")

    def sleep(_: float) -> None:
        waits.append(1)
        assert source.read("a.png") == PHOTOS["a.png"], "as another thread does meanwhile"

    monkeypatch.setattr(retry.time, "sleep", sleep)
    for _ in range(5):
        assert source.read("b/c.png") == PHOTOS["b/c.png"]
    assert (len(waits), client.made) == (1, 2)


class Webdav(fsspec.AbstractFileSystem):
    """A client whose `cat_file` gives the path that it asks for."""

    __module__ = "webdav4.fsspec"
    protocol = "webdav"

    class Client:
        def join_url(self, path: str, add_trailing_slash: bool = False) -> str:
            return path + "/" * add_trailing_slash

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.client = self.Client()

    def cat_file(self, path: str, **_: Any) -> bytes:
        return self.client.join_url(path, add_trailing_slash=False).encode()


@pytest.mark.parametrize("name", ["a #1.png", "x%20y.png", "q?.png"])
def test_names_are_quoted_for_webdav(registered: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registered("webdav", Webdav)
    for _ in range(2):  # of which the second gets the first one's client
        asked = open_source("webdav://photos").read(name).decode()
        assert unquote(asked) == f"photos/{name}"
        assert not set(" #?") & set(asked)
    monkeypatch.setitem(fsspec.config.conf, "webdav", {"base_url": "https://host"})
    assert unquote((place("webdav://labels") / name).read_bytes().decode()) == f"labels/{name}"

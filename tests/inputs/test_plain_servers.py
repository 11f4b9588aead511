"""Inputs on web servers that send whole files alone, or write names in their listings as they like."""

import functools
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.http import HTTPFileSystem

from sea_pipeline import open_labels
from sea_pipeline.inputs.sources import list_samples, open_source
from sea_pipeline.storage import http_parts
from tests.support.contents import rows
from tests.support.photo_forms import Photos, photos_in, write_list, write_parquet, write_tar, write_tars
from tests.support.refused import refused
from tests.support.world import Label, draw_folder

ODD = ("a b.png", "ä.png", "猫 #1.png", "100%.png", "x%20y.png", "a&b;.png", "q?.png", "[1].png", "it's.png", "+.png")


class Server(ThreadingHTTPServer):
    """Python's own web server, which knows no `Range`, and the paths that it was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.page = ""
        """What it shows for a folder, in place of Python's own listing."""


class _Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        super().do_GET()

    def list_directory(self, path: str | os.PathLike[str]) -> object:  # type: ignore[override]
        if not self.server.page:
            return super().list_directory(path)
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.server.page.encode())
        return None

    def copyfile(self, source: object, outputfile: object) -> None:
        try:
            super().copyfile(source, outputfile)  # type: ignore[misc]
        except ConnectionError:  # the reader has all that it wants
            self.close_connection = True

    def log_message(self, format: str, *given: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "pages").mkdir()
    server = Server(tmp_path / "pages")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    HTTPFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    """Photos that are larger together than what is read of a file at once."""
    found = photos_in(draw_folder(tmp_path / "photos", 6))
    random = np.random.default_rng(0)
    return {name: data + random.bytes(40_000) for name, data in found.items()}


def read(images: str, **options: str) -> Photos:
    listing = list_samples(images, **options)
    assert [sample.problem for sample in listing.samples] == [None] * len(listing.samples)
    source = open_source(listing.root)
    return {sample.image_id: source.read(sample.uri) for sample in listing.samples}


def test_a_server_without_parts_gives_the_same_images(server: Server, photos: Photos, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    write_tar(pages / "x.tar", list(photos.items()))
    write_parquet(pages / "x.parquet", photos)
    for form in ("x.tar", "x.parquet"):
        server.asked.clear()
        assert read(f"{server.url}/{form}") == photos
        assert len(server.asked) < 12
    assert (pages / "x.tar").stat().st_size > 3 << 16


def test_tars_that_are_read_in_turn_are_fetched_once(server: Server, photos: Photos, tmp_path: Path) -> None:
    write_tars(tmp_path / "pages" / "t", photos, 2)
    listing = list_samples(f"{server.url}/t/*.tar")
    source = open_source(listing.root)
    server.asked.clear()
    for _ in range(5):
        assert {sample.image_id: source.read(sample.uri) for sample in listing.samples} == photos
    assert len(server.asked) <= 3  # one that asks for a part


def test_a_long_list_comes_whole(server: Server, photos: Photos, tmp_path: Path) -> None:
    for name, data in photos.items():
        (tmp_path / "pages" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "pages" / name).write_bytes(data)
    lines = [{"path": name, "note": "x" * 50_000} for name in photos]
    write_list(tmp_path / "pages" / "list.csv", lines)
    assert read(f"{server.url}/list.csv") == photos


@pytest.mark.parametrize("form", ["x.tar", "x.parquet", "x.csv"])
def test_a_large_file_is_not_fetched_for_each_part(
    server: Server, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The line's advice, to download it, works."""
    file = tmp_path / "pages" / form
    if form == "x.tar":
        write_tar(file, list(photos.items()))
    elif form == "x.parquet":
        write_parquet(file, photos)
    else:
        write_list(file, [{"path": name, "note": "x" * 50_000} for name in photos])
    monkeypatch.setattr(http_parts, "MOST_WHOLE", 100_000)
    parts = ("expected a server that sends parts of files", f"{file.stat().st_size:,} bytes; download the file")
    with refused(*parts, start=f"{server.url}/{form}: "):
        list_samples(f"{server.url}/{form}")
    assert len(server.asked) < 4
    assert len(list_samples(str(file)).samples) == 6


def test_labels_are_read_from_a_server_without_parts(server: Server, label: Label, tmp_path: Path) -> None:
    label(images=str(draw_folder(tmp_path / "photos", 9)), out=tmp_path / "pages" / "labels")
    assert rows(open_labels(f"{server.url}/labels")) == rows(open_labels(tmp_path / "pages" / "labels"))


def test_names_in_a_folder_are_the_real_ones(server: Server, photos: Photos, tmp_path: Path) -> None:
    folder = tmp_path / "pages" / "odd ä"
    named = {f"{part}{name}": data for part in ("", "b c/") for name in ODD for data in list(photos.values())[:1]}
    for name, data in named.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert read(f"{server.url}/odd%20%C3%A4") == read(f"{server.url}/odd ä") == named


def test_names_that_a_page_writes_otherwise(server: Server, photos: Photos, tmp_path: Path) -> None:
    """As other servers do: entities, absolute links, spaces as they are."""
    (data, *_) = photos.values()
    (tmp_path / "pages" / "odd x").mkdir()
    for name in ("a&b.png", "c d.png", "e f.png"):
        (tmp_path / "pages" / "odd x" / name).write_bytes(data)
    server.page = (
        '<a href="../">up</a><a href="?C=N;O=D">sort</a><a href="a&amp;b.png">a&amp;b.png</a>'
        '<a href="/odd%20x/c%20d.png">c d.png</a><a href="e f.png">e f.png</a>'
    )
    assert read(f"{server.url}/odd x") == dict.fromkeys(("a&b.png", "c d.png", "e f.png"), data)


def test_a_name_that_is_not_utf8_costs_itself(server: Server, photos: Photos, tmp_path: Path) -> None:
    (data, *_) = photos.values()
    for name in (b"good.png", b"\xe9.png"):
        Path(os.fsdecode(os.fsencode(tmp_path / "pages") + b"/" + name)).write_bytes(data)
    bad, good = list_samples(server.url).samples
    assert (good.image_id, good.problem) == ("good.png", None)
    assert "not UTF-8" in (bad.problem or "")


@pytest.mark.parametrize(
    "pattern",
    [
        *("t/photos-*.tar", "t/photos-00?.tar", "t/photos-[0-2]*.tar", "*/photos-*.tar", "**/photos-00[012].tar"),
        *("t/photos-{000..001}.tar", "t/p*-{000..001}.tar", "a%20b/ü-*.tar"),
        *("a b/%C3%BC-00?.tar", "a%20b/ü-{000,001}.tar"),
    ],
)
def test_patterns_match_what_they_match_here(server: Server, photos: Photos, tmp_path: Path, pattern: str) -> None:
    pages = tmp_path / "pages"
    write_tars(pages / "t", photos)
    (pages / "a b").mkdir()
    for number in range(3):
        (pages / "a b" / f"ü-00{number}.tar").write_bytes((pages / "t" / f"photos-00{number}.tar").read_bytes())
    found = read(f"{server.url}/{pattern}")
    assert len(found) == (4 if "001" in pattern else 6)
    assert found == {name: data for name, data in photos.items() if name in found}


def test_a_pattern_that_matches_nothing_is_one_line(server: Server) -> None:
    with refused("expected files; found none called x-*.tar"):
        list_samples(f"{server.url}/x-*.tar")


def test_a_url_in_a_list_may_be_quoted(server: Server, photos: Photos, tmp_path: Path) -> None:
    (data, *_) = photos.values()
    (tmp_path / "pages" / "a b").mkdir()
    (tmp_path / "pages" / "a b" / "ä c.png").write_bytes(data)
    write_list(
        tmp_path / "pages" / "my list.csv",
        [{"id": "1", "path": f"{server.url}/a%20b/%C3%A4%20c.png"}, {"id": "2", "path": "a b/ä c.png"}],
    )
    assert read(f"{server.url}/my%20list.csv") == read(f"{server.url}/my list.csv") == {"1": data, "2": data}

"""Inputs on web servers that send whole files alone, or write names in their listings as they like."""

import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from sea_pipeline import open_labels
from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.pixels import BadImageError
from sea_pipeline.inputs.sources import list_samples, open_source, remote
from sea_pipeline.storage import http_parts
from sea_pipeline.storage.leftovers import LEFTOVERS
from sea_pipeline.storage.paths import place
from sea_pipeline.storage.retry import StoreError
from tests.fuzz.web import Server, served
from tests.support.contents import read_all, rows
from tests.support.photo_forms import Photos, photos_in, write_folder, write_list, write_parquet, write_tar, write_tars
from tests.support.refused import refused
from tests.support.world import Label, draw_folder

ODD = ("a b.png", "ä.png", "猫 #1.png", "100%.png", "x%20y.png", "a&b;.png", "q?.png", "[1].png", "it's.png", "+.png")


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """The folder that `server` serves."""
    (tmp_path / "pages").mkdir()
    return tmp_path / "pages"


@pytest.fixture
def server(pages: Path) -> Iterator[Server]:
    """Python's own web server, which knows no `Range`."""
    with served(pages, {}, parts=False) as server:
        yield server


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    """Photos that are larger together than what is read of a file at once."""
    found = photos_in(draw_folder(tmp_path / "photos", 6))
    random = np.random.default_rng(0)
    return {name: data + random.bytes(40_000) for name, data in found.items()}


def test_a_server_without_parts_gives_the_same_images(server: Server, photos: Photos, pages: Path) -> None:
    write_tar(pages / "x.tar", photos)
    write_parquet(pages / "x.parquet", photos)
    for form in ("x.tar", "x.parquet"):
        assert read_all(list_samples(f"{server.url}/{form}")) == photos
        assert server.asked[form] < 12
    assert (pages / "x.tar").stat().st_size > 3 << 16


def test_tars_that_are_read_in_turn_are_fetched_once(server: Server, photos: Photos, pages: Path) -> None:
    write_tars(pages / "t", photos, 2)
    listing = list_samples(f"{server.url}/t/*.tar")
    source = open_source(listing.root)
    server.asked.clear()
    for _ in range(5):
        assert {sample.image_id: source.read(sample.uri) for sample in listing.samples} == photos
    assert sum(server.asked.values()) <= 3  # one that asks for a part


@pytest.mark.parametrize("says_total", [True, False])
def test_a_server_that_sends_less_of_a_part_is_asked_for_the_rest(
    photos: Photos, pages: Path, says_total: bool
) -> None:
    write_folder(pages, photos)
    write_tar(pages / "x.tar", photos)
    with served(pages, {}) as server:
        server.most, server.says_total = 30_000, says_total
        assert read_all(list_samples(server.url + "/x.tar")) == photos
        write_list(pages / "list.csv", [{"path": name} for name in photos])
        assert read_all(list_samples(f"{server.url}/list.csv")) == photos


def test_a_long_list_comes_whole(server: Server, photos: Photos, pages: Path) -> None:
    write_folder(pages, photos)
    write_list(pages / "list.csv", [{"path": name, "note": "x" * 50_000} for name in photos])
    assert read_all(list_samples(f"{server.url}/list.csv")) == photos


@pytest.mark.parametrize("form", ["x.tar", "x.parquet", "x.csv"])
def test_a_large_file_is_not_fetched_for_each_part(
    server: Server, photos: Photos, pages: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The line's advice, to download it, works."""
    file = pages / form
    if form == "x.tar":
        write_tar(file, photos)
    elif form == "x.parquet":
        write_parquet(file, photos)
    else:
        write_list(file, [{"path": name, "note": "x" * 50_000} for name in photos])
    monkeypatch.setattr(http_parts, "MOST_WHOLE", 100_000)
    parts = ("expected a server that sends parts of files", f"{file.stat().st_size:,} bytes; download the file")
    with refused(*parts, start=f"{server.url}/{form}: "):
        list_samples(f"{server.url}/{form}")
    assert sum(server.asked.values()) < 4
    assert len(list_samples(str(file)).samples) == 6


def test_an_archive_on_a_server_without_parts_is_to_be_downloaded(server: Server, pages: Path) -> None:
    with zipfile.ZipFile(pages / "x.zip", "w") as archive:
        archive.writestr("a.png", bytes(10_000_000))
    with refused("the server sends whole files alone", "download it, and name the copy"):
        list_samples(f"zip://::{server.url}/x.zip")
    assert len(list_samples(f"zip://::{pages / 'x.zip'}").samples) == 1


def test_labels_are_read_from_a_server_without_parts(server: Server, label: Label, pages: Path) -> None:
    label(images=str(draw_folder(pages / "photos", 9)), out=pages / "labels")
    assert rows(open_labels(f"{server.url}/labels")) == rows(open_labels(pages / "labels"))


@pytest.mark.parametrize("front", ["", "simplecache::"])
def test_names_in_a_folder_are_the_real_ones(server: Server, pages: Path, front: str) -> None:
    named = {f"{part}{name}": name.encode() for part in ("", "b c/") for name in ODD}
    write_folder(pages / "odd ä", named)
    for name in ("odd%20%C3%A4", "odd ä"):
        assert read_all(list_samples(f"{front}{server.url}/{name}")) == named


def test_names_that_a_page_writes_otherwise(server: Server, pages: Path) -> None:
    """As other servers do: entities, absolute links, spaces as they are."""
    named = {name: name.encode() for name in ("a&b.png", "c d.png", "e f.png")}
    write_folder(pages / "odd x", named)
    page = (
        '<a href="../">up</a><a href="?C=N;O=D">sort</a><a href="a&amp;b.png">a&amp;b.png</a>'
        '<a href="/odd%20x/c%20d.png">c d.png</a><a href="e f.png">e f.png</a>'
    )
    server.faults = dict.fromkeys(("odd x", "odd x/"), (1, page))
    assert read_all(list_samples(f"{server.url}/odd x")) == named


def test_a_name_that_is_not_utf8_costs_itself(server: Server, pages: Path) -> None:
    write_folder(pages, {"good.png": b"G", os.fsdecode(b"\xe9.png"): b"E"})
    bad, good = list_samples(server.url).samples
    assert (good.image_id, good.problem) == ("good.png", None)
    assert "not UTF-8" in (bad.problem or "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    [
        *("t/photos-*.tar", "t/photos-00?.tar", "t/photos-[0-2]*.tar", "*/photos-*.tar", "**/photos-00[012].tar"),
        *("t/photos-{000..001}.tar", "t/p*-{000..001}.tar", "a%20b/ü-*.tar"),
        *("a b/%C3%BC-00?.tar", "a%20b/ü-{000,001}.tar"),
    ],
)
def test_patterns_match_what_they_match_here(server: Server, photos: Photos, pages: Path, pattern: str) -> None:
    write_tars(pages / "t", photos)
    for number, part in enumerate(sorted((pages / "t").iterdir())):
        write_folder(pages / "a b", {f"ü-00{number}.tar": part.read_bytes()})
    found = read_all(list_samples(f"{server.url}/{pattern}"))
    assert len(found) == (4 if "001" in pattern else 6)
    assert found == {name: data for name, data in photos.items() if name in found}


def test_a_pattern_that_matches_nothing_is_one_line(server: Server, pages: Path) -> None:
    write_folder(pages, {"y-0.tar": b""})
    with refused("expected files; found none called x-*.tar"):
        list_samples(f"{server.url}/x-*.tar")


@pytest.mark.parametrize("front", ["", "simplecache::"])
def test_a_url_in_a_list_may_be_quoted(server: Server, pages: Path, front: str) -> None:
    write_folder(pages, {"a b/ä c.png": b"A"})
    listed = [{"id": "1", "path": f"{front}{server.url}/a%20b/%C3%A4%20c.png"}, {"id": "2", "path": "a b/ä c.png"}]
    write_list(pages / "my list.csv", listed)
    for name in ("my%20list.csv", "my list.csv"):
        assert read_all(list_samples(f"{front}{server.url}/{name}")) == {"1": b"A", "2": b"A"}


@pytest.mark.usefixtures("no_long_waits")
@pytest.mark.parametrize("front", ["", "simplecache::"])
def test_one_image_that_a_server_does_not_give_costs_itself(pages: Path, front: str) -> None:
    """A cache takes whatever the server answers for a missing file."""
    photos = {f"{status}.png": b"A" for status in (200, 403, 404, 503)}
    write_list(pages / "list.csv", [{"path": name} for name in photos])
    write_folder(pages, photos)
    with served(pages, {name: (1, int(name[:3])) for name in photos if name != "200.png"}) as server:
        source = open_source(list_samples(f"{front}{server.url}/list.csv").root)
        assert (source.read("200.png"), source.read("503.png")) == (b"A", b"A")
        for name, error in (("403.png", "PermissionError"), ("404.png", "FileNotFoundError")):
            with pytest.raises(BadImageError) as bad:
                source.read(name)
            assert bad.value.error == error


@pytest.mark.parametrize("form", ["x.tar", "x.parquet"])
def test_images_of_a_file_that_is_refused_are_not_called_damaged(
    pages: Path, photos: Photos, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """It is refused from the first, the second or the third request on."""
    write_tar(pages / "x.tar", photos)
    write_parquet(pages / "x.parquet", photos)
    errors = set()
    with served(pages, {}) as server:
        listing = list_samples(f"{server.url}/{form}")
        for request in (1, 2, 3):
            server.asked[form], server.faults[form] = 0, (request, 403)
            source = open_source(listing.root, listing.versions)
            for sample in listing.samples:
                try:
                    assert source.read(sample.uri) == photos[sample.image_id]
                except BadImageError as bad:
                    errors.add(bad.error)
    assert errors == {"PermissionError"}
    monkeypatch.setattr(remote, "patiently_in_turn", Mock(side_effect=StoreError("the credentials are refused")))
    with pytest.raises(StoreError):
        open_source(listing.root, listing.versions).read(listing.samples[0].uri)


SIGNED = "Expires=1&Signature=a%2Fb%2Bc%3D*.&e=%41"


@pytest.mark.parametrize("form", ["x.tar", "x.parquet", "x.csv", "x.json"])
def test_a_query_behind_a_file_is_sent_as_it_is_written(pages: Path, photos: Photos, form: str) -> None:
    """It is no pattern, and stands in no message, because it may be a secret."""
    write_folder(pages, photos)
    write_tar(pages / "x.tar", photos)
    write_parquet(pages / "x.parquet", photos)
    write_list(pages / "x.csv", [{"path": name} for name in photos])
    (pages / "x.json").write_text(json.dumps([{"id": name, "image": name} for name in photos]))
    with served(pages, {}) as server:
        listing = list_samples(f"{server.url}/{form}?{SIGNED}#top")
        assert listing.origin == f"{server.url}/{form}"
        assert read_all(listing) == photos
        assert listing.name == "x"
        assert {raw for raw in server.raw if raw.startswith(f"/{form}")} == {f"/{form}?{SIGNED}"}
        with refused("expected a file; found nothing there", start=f"{server.url}/no/{form}: "):
            list_samples(f"{server.url}/no/{form}?{SIGNED}")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_file_that_is_refused_is_not_said_to_be_absent(pages: Path, status: int) -> None:
    write_list(pages / "list.csv", [{"path": "a.png"}])
    write_tar(pages / "x.tar", {"a.png": b"A"})
    said = "expected a file; found nothing there" if status in (404, 410) else f"cannot be read: {status}, "
    with served(pages, dict.fromkeys(("list.csv", "x.tar"), (1, status))) as server:
        for images in (f"{server.url}/list.csv", f"{server.url}/x.tar", f"simplecache::{server.url}/x.tar"):
            query = "" if images.startswith("simplecache") else f"?{SIGNED}"
            with pytest.raises(UserError, match=f"^{re.escape(images)}: {said}") as problem:
                list_samples(f"{images}{query}")
            assert "Signature" not in str(problem.value)
        if status in (404, 410):
            assert not place(f"{server.url}/x.tar").exists()
        else:
            with refused(f"/x.tar: cannot be read: {status}"):
                place(f"{server.url}/x.tar").exists()


@pytest.mark.parametrize("form", ["x.tar", "x.parquet", "list.csv"])
def test_a_server_that_does_not_say_how_long_a_file_is(
    pages: Path, photos: Photos, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(pages, photos)
    write_tar(pages / "x.tar", photos)
    write_parquet(pages / "x.parquet", photos)
    write_list(pages / "list.csv", [{"path": name, "note": "x" * 50_000} for name in photos])
    with served(pages, {}) as server:
        server.says_length = False
        for front in ("", "simplecache::"):
            assert read_all(list_samples(f"{front}{server.url}/{form}")) == photos
        monkeypatch.setattr(remote, "MOST_WHOLE", 100_000)
        monkeypatch.setattr(http_parts, "MOST_WHOLE", 100_000)
        with refused("does not say how long it is, and it has more than 100,000 bytes; download it"):
            list_samples(f"{server.url}/{form}")
    assert len(list_samples(str(pages / form)).samples) == 6


def test_a_query_is_sent_as_it_is_written(server: Server, pages: Path) -> None:
    write_folder(pages, {"in/a b.png": b"A", "in/c.png": b"C"})
    written = [f"{server.url}/in/a%20b.png?Signature=a%2Fb%2Bc%3D&e=%41#top", f"{server.url}/in/c.png#top"]
    write_list(pages / "list.csv", [{"path": path} for path in written])
    listing = list_samples(f"{server.url}/list.csv", f"{server.url}/in")
    assert read_all(listing) == dict(zip(written, (b"A", b"C"), strict=True))
    assert server.raw[-2:] == ["/in/a%20b.png?Signature=a%2Fb%2Bc%3D&e=%41", "/in/c.png"]


FOLDERS = {f"{folder}{name}.png": name.encode() for name, folder in zip("abcd", ("", "x/", "x/y/", "z/"), strict=True)}


@pytest.mark.slow
@pytest.mark.usefixtures("no_long_waits")
@pytest.mark.parametrize("page", ["x", "x/y", ""])
@pytest.mark.parametrize("what", ["reset", 504])
def test_a_page_that_cannot_be_fetched_ends_the_listing(
    server: Server, pages: Path, page: str, what: str | int
) -> None:
    write_folder(pages, FOLDERS)
    server.faults = {page: (1, what)}
    for images in (server.url, f"simplecache::{server.url}", f"{server.url}/**/*.tar"):
        with refused("cannot be listed", start=images.removesuffix("/**/*.tar")):
            list_samples(images)


@pytest.mark.usefixtures("no_long_waits")
def test_a_page_that_fails_for_a_while_is_fetched(server: Server, pages: Path) -> None:
    write_folder(pages, FOLDERS)
    server.faults = {"x": (1, 503), "z": (1, 429)}
    assert read_all(list_samples(server.url)) == FOLDERS


@pytest.mark.parametrize("status", [403, 404])
def test_a_folder_below_that_is_refused_for_good_is_counted(server: Server, pages: Path, status: int) -> None:
    write_folder(pages, FOLDERS | {"lost+found/d.png": b""})
    server.faults = {"x": (1, status), "lost+found": (1, status)}
    listing = list_samples(server.url)
    assert [sample.image_id for sample in listing.samples] == ["a.png", "z/d.png"]
    assert listing.notes == {"folders that cannot be listed": 1, LEFTOVERS: 1}


@pytest.mark.usefixtures("no_long_waits")
@pytest.mark.parametrize("images", ["", "/x", "/x-*.tar", "/x-{0..1}.tar", "/x.tar", "/x.csv"])
def test_a_server_that_is_down_is_said_to_be_so(images: str) -> None:
    with refused("cannot be", match="(?i)connect"):
        list_samples(f"http://127.0.0.1:9{images}")


def test_where_nothing_is_that_is_said(server: Server, s3: str) -> None:
    for images in (f"{server.url}/no", "s3://nowhere/x", "s3://bucket/nowhere"):
        with refused(f"{images}: expected a folder of images; found nothing there"):
            list_samples(images)


def test_links_that_lead_in_circles_or_out_are_not_followed(server: Server, pages: Path) -> None:
    write_folder(pages, {"in/x/a.png": b"A", "in/y/b.png": b"B", "out/c.png": b"C"})
    around = ["./", "../", "/in/", "../in/", "../../out/", "/out/", "?C=N", "x/", "y/"]
    pages_of = {"in": around, "in/x": ["a.png", *around[:7]]}
    pages_of |= {f"in{'/on' * depth}": ["on/"] for depth in range(1, 101)}
    server.faults = {page: (1, "".join(f'<a href="{to}">_</a>' for to in links)) for page, links in pages_of.items()}
    assert [sample.image_id for sample in list_samples(f"{server.url}/in").samples] == ["x/a.png", "y/b.png"]
    with refused("/on/on: expected fewer folders inside each other"):
        list_samples(f"{server.url}/in/on")

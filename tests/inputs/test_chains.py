"""Inputs in archives, behind caches and at FTP servers, which fsspec reads by chains of URLs."""

import ftplib
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.cached import SimpleCacheFileSystem
from fsspec.implementations.ftp import FTPFileSystem

from sea_pipeline.inputs.sources import list_samples, open_source, remote
from sea_pipeline.storage.paths import place
from sea_pipeline.storage.turns import reads_at_once
from tests.support.contents import read_all
from tests.support.photo_forms import Photos, tar_bytes, write_parquet, write_tar
from tests.support.refused import refused

PHOTOS = {"a.png": b"A", "in/b.png": b"B", "in/deep/c.png": b"C"}


def pack(kind: str, path: Path, files: Photos) -> Path:
    """An archive of files; `tar` or `zip`."""
    if kind == "tar":
        return write_tar(path, files)
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return path


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_is_a_store(kind: str, tmp_path: Path) -> None:
    """Also one whose own name has the suffix of an input, or a `*`."""
    for name in ("x", "x.tar", "x*.csv"):
        pack(kind, tmp_path / name, PHOTOS)
        assert read_all(list_samples(f"{kind}://::{tmp_path}/{name}")) == PHOTOS
        assert read_all(list_samples(f"{kind}://in::{tmp_path}/{name}")) == {"b.png": b"B", "deep/c.png": b"C"}
        found = remote.RemoteFiles(f"{kind}://::{tmp_path}/{name}").matching("**/*.png")
        assert sorted(found) == sorted(PHOTOS)


def test_a_tar_of_the_folder_dot_has_the_names_in_it(tmp_path: Path) -> None:
    """As `tar -czf x.tar.gz .` writes it. Plans of older versions have the dot in their `uri`s."""
    (tmp_path / "l.csv").write_text("path\na.png\nnone.png\n")
    files = PHOTOS | {"l.csv": (tmp_path / "l.csv").read_bytes()}
    (tmp_path / "x.tar.gz").write_bytes(tar_bytes({f"./{name}": data for name, data in files.items()}, mode="w:gz"))
    url = f"tar://{{}}::{tmp_path}/x.tar.gz"
    assert read_all(list_samples(url.format(""))) == PHOTOS
    assert read_all(list_samples(url.format("in"))) == {"b.png": b"B", "deep/c.png": b"C"}
    assert open_source(url.format("")).read("./in/b.png") == b"B"
    listed = {"a.png": b"A", "none.png": f"no such file in {url.format('')}"}
    assert read_all(list_samples(url.format("l.csv"))) == listed
    assert read_all(list_samples(str(tmp_path / "l.csv"), url.format(""))) == listed


@pytest.mark.parametrize("front", ["", "simplecache::"])
@pytest.mark.parametrize("images", ["l.csv", "in/t-0.tar", "in/t-*.tar", "in/t-{0..0}.tar", "x.parquet", "in", ""])
def test_an_archive_holds_every_form(front: str, images: str, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path\na.png\nin/b.png\n")
    inner = {"in/t-0.tar": tar_bytes({"d.png": b"D"})} if images.endswith(".tar") else {}
    files = PHOTOS | inner | {"l.csv": (tmp_path / "l.csv").read_bytes()}
    if images == "x.parquet":
        files["x.parquet"] = write_parquet(tmp_path / "x.parquet", {"a.png": b"\x89PNG\r\n\x1a\n"}).read_bytes()
    pack("zip", tmp_path / "y.zip", files)
    expected: dict[str, Photos] = {
        "l.csv": {"a.png": b"A", "in/b.png": b"B"},
        "x.parquet": {"a.png": b"\x89PNG\r\n\x1a\n"},
        "in": {"b.png": b"B", "deep/c.png": b"C"},
        "": PHOTOS,
    }
    found = list_samples(f"{front}zip://{images}::{tmp_path}/y.zip")
    assert read_all(found) == expected.get(images, {"d.png": b"D"})


def test_the_line_about_two_kinds_in_an_archive_says_what_to_give(tmp_path: Path) -> None:
    pack("zip", tmp_path / "y.zip", {"t.tar": tar_bytes({"d.png": b"D"}), "x.parquet": b""})
    wanted = f"zip://*.tar::{tmp_path}/y.zip"
    with refused("holds .parquet and .tar files", f"such as '{wanted}'"):
        list_samples(f"zip://::{tmp_path}/y.zip")
    assert read_all(list_samples(wanted)) == {"d.png": b"D"}


@pytest.mark.slow
@pytest.mark.parametrize("chain", ["tar://::{}", "filecache::tar://::{}", "simplecache::tar://::{}", "zip://::{}"])
def test_threads_get_the_bytes_that_they_ask_for(chain: str, tmp_path: Path) -> None:
    """Threads share the one position of an archive's file, in every place that reads stores."""
    random = np.random.default_rng(0)
    files = {f"{number:02d}.png": random.bytes(100_000) for number in range(48)}
    file = tmp_path / "x.tar.gz"
    if "zip" in chain:
        pack("zip", file, files)
    else:
        file.write_bytes(tar_bytes(files, mode="w:gz"))
    url = chain.format(file)
    source = open_source(url)
    assert source.readers == 1
    readers: list[Callable[[str], bytes]] = [source.read]
    if "cache" not in chain:
        top = place(url)
        readers.append(lambda name: (top / name).read_bytes())
    for read in readers:
        with ThreadPoolExecutor(16) as pool:
            assert dict(zip(files, pool.map(read, files), strict=True)) == files


def test_threads_that_read_one_file_through_a_cache_wait_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """simplecache takes a file for whole as soon as it exists."""
    files = {f"{number:02d}.png": bytes([number]) * 10_000 for number in range(16)}
    memory, begun = fsspec.filesystem("memory"), threading.Event()
    memory.pipe_file("/one/x.tar", tar_bytes(files))

    def slowly(self: object, path: str, to: str, **_: object) -> None:
        with Path(to).open("wb") as file:
            file.write(memory.cat_file(path, end=20_000))
            file.flush()
            begun.set()
            time.sleep(0.1)
            file.write(memory.cat_file(path, start=20_000))

    monkeypatch.setattr(type(memory), "get_file", slowly)
    listing = list_samples("simplecache::memory://one/x.tar")
    SimpleCacheFileSystem.clear_instance_cache()
    source = open_source(listing.root)
    assert source.readers == 16
    with ThreadPoolExecutor(16) as pool:
        first, *others = [sample.uri for sample in listing.samples]
        begun.clear()
        found = [pool.submit(source.read, first)]
        assert begun.wait(10)
        found += [pool.submit(source.read, uri) for uri in others]
        assert [one.result() for one in found] == list(files.values())


def test_stores_that_are_read_by_several_threads_at_once(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FTPFileSystem, "_connect", lambda self: setattr(self, "ftp", ftplib.FTP()))
    at_once = ["memory://x", f"file://{tmp_path}", "http://h/x", "s3://bucket", "simplecache::s3://bucket"]
    in_turn = [
        "filecache::s3://bucket",
        "blockcache::http://h/x",
        "dir://x::memory://y",
        "simplecache::dir::memory://x",
        "ftp://h/x",
    ]
    for urls, expected in ((at_once, True), (in_turn, False)):
        for url in urls:
            assert reads_at_once(fsspec.core.url_to_fs(url)[0]) is expected, url


@pytest.mark.parametrize("opened", [list_samples, open_source, place])
def test_an_archive_that_cannot_be_opened_is_one_line(opened: Callable[[str], object], tmp_path: Path) -> None:
    pack("zip", tmp_path / "cut.zip", {"a.png": bytes(1000)})
    (tmp_path / "cut.zip").write_bytes((tmp_path / "cut.zip").read_bytes()[:500])
    (tmp_path / "x.tgz").write_bytes(tar_bytes(PHOTOS, mode="w:gz"))
    (tmp_path / "cut.tar.gz").write_bytes(tar_bytes(PHOTOS, mode="w:gz")[:100])
    urls = {
        f"tar://::{tmp_path}/x.tgz": "header",
        f"tar://::{tmp_path}/cut.tar.gz": "",
        f"zip://::{tmp_path}/cut.zip": "not a zip file",
        f"zip://::{tmp_path}/none.zip": "No such file",
        "zip://::http://127.0.0.1:9/x.zip": "Connect",
        "ftp://127.0.0.1:9/x": "refused",
    }
    for url, reason in urls.items():
        with refused(reason, start=f"{url}: cannot be opened; "):
            opened(url)

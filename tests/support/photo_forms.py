"""The same photos in every form that `--images` takes, and an S3 server on this machine."""

import csv
import io
import struct
import tarfile
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.loopback import Handler, Loopback

Photos = dict[str, bytes]
"""Bytes by id."""
Link = tuple[bytes, str]
"""A link in a tar: its type and its target."""


def photos_in(folder: Path) -> Photos:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def write_folder(folder: Path, photos: Photos) -> Path:
    for name, data in photos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar_bytes(members: Mapping[str, bytes | Link], kind: int = tarfile.PAX_FORMAT, mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, format=kind, encoding="utf-8", errors="surrogateescape") as tar:  # type: ignore[call-overload]
        for name, held in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(held, bytes):
                member.size = len(held)
                tar.addfile(member, io.BytesIO(held))
            else:
                member.type, member.linkname = held
                tar.addfile(member)
    return packed.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes | Link]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path


def write_tars(folder: Path, photos: Photos, count: int = 3) -> Path:
    for number in range(count):
        mine = list(photos.items())[number::count]
        members = [pair for name, data in mine for pair in ((name, data), (f"{name[:-4]}.json", b"{}"))]
        write_tar(folder / f"photos-{number:03d}.tar", dict(members))
    return folder


def write_parquet(path: Path, photos: Photos, *, plain: bool = False, group: int = 5, **columns: list[Any]) -> Path:
    """The photos as Hugging Face writes them, or (`plain`) as a binary column; ids in `image_id`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells: list[Any] = list(photos.values())
    kind: Any = pa.binary()
    if not plain:
        cells = [{"bytes": data, "path": name} for name, data in photos.items()]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {"image": pa.array(cells, kind), **(columns or {"image_id": list(photos)})}
    pq.write_table(pa.table(table), path, row_group_size=group, compression="zstd", use_dictionary=False)
    return path


def write_list(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_dataset(path: Path, **splits: dict[str, list[Any]]) -> Path:
    """Columns and images by split, as `datasets` saves them."""
    import datasets

    parts = {}
    for name, columns in splits.items():
        features = {column: datasets.Value("string") for column in columns} | {"image": datasets.Image()}
        parts[name] = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.DatasetDict(parts).save_to_disk(path)
    return path


def copy_to(url: str, folder: Path) -> None:
    """Every file of a folder, below a URL."""
    import fsspec

    files, top = fsspec.core.url_to_fs(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files.pipe_file(f"{top}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@contextmanager
def s3_server(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server on loopback with the bucket `bucket`, which the environment makes s3:// mean; gives its address."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    for name, value in environment.items():
        patch.setenv(name, value)
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # what an earlier one held
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    try:
        yield f"{host}:{port}"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


class FailingProxy(Loopback):
    """Passes requests on to a server, but answers the first `faults` for each image with a status of its own; with
    `all_files` those for each file, to read or to write.
    """

    def __init__(self, upstream: str, status: int, faults: int, all_files: bool) -> None:
        super().__init__(_Handler)
        self.upstream, self.status, self.faults, self.all_files = upstream, status, faults, all_files
        self.asked: dict[str, int] = {}
        self.lock = threading.Lock()

    def faulty(self, path: str) -> bool:
        if not (self.all_files or path.endswith(".png")):
            return False
        with self.lock:
            self.asked[path] = self.asked.get(path, 0) + 1
            return self.asked[path] <= self.faults


class _Handler(Handler):
    server: FailingProxy

    def do_GET(self) -> None:  # noqa: N802
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.faulty(f"{self.command} {self.path}"):
            body = b"<Error><Code>InternalError</Code><Message>for a while</Message></Error>"
            self.answer(self.server.status, body, **{"Content-Type": "application/xml"})
        else:
            connection = HTTPConnection(self.server.upstream)
            passed_on = {name: value for name, value in self.headers.items() if name != "Expect"}
            connection.request(self.command, self.path, sent, passed_on)
            response = connection.getresponse()
            body = response.read()
            connection.close()
            ours = {"content-length", "transfer-encoding", "connection", "date", "server"}
            headers = {name: value for name, value in response.getheaders() if name.lower() not in ours}
            if self.command == "HEAD":
                headers["Content-Length"] = response.headers.get("Content-Length", "0")
            self.answer(response.status, body, **headers)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815


@contextmanager
def failing_s3(
    patch: pytest.MonkeyPatch, upstream: str, status: int, faults: int, *, all_files: bool = False
) -> Iterator[FailingProxy]:
    """Makes s3:// fail for a while."""
    import s3fs

    with FailingProxy(upstream, status, faults, all_files) as proxy:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield proxy
        finally:
            patch.setenv("AWS_ENDPOINT_URL", f"http://{upstream}")
            s3fs.S3FileSystem.clear_instance_cache()


def encoded(form: str, image: Image.Image, **options: Any) -> bytes:
    """The bytes of an image, as Pillow writes them."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name: bytes, payload: bytes = b"", wrong: int = 0) -> bytes:
    """A chunk of a PNG; bits of `wrong` are other ones in its checksum."""
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload) ^ wrong)


def bomb() -> bytes:
    return encoded("PNG", Image.new("1", (20_000, 20_000)))


def jpeg() -> bytes:
    return encoded("JPEG", Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))

"""Reading forward, trying again, and memory."""

import errno
import ftplib
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.pixels import BadImageError
from sea_pipeline.inputs.samples import Version
from sea_pipeline.inputs.sources import forward, list_samples, open_source, remote, tables
from sea_pipeline.inputs.sources.forward import Forward
from sea_pipeline.inputs.sources.versions import ChangedError, keep_version
from sea_pipeline.storage import retry
from sea_pipeline.storage.retry import PassingError, StoreError, may_pass, patiently
from tests.support.contents import read_all
from tests.support.photo_forms import write_list, write_parquet

ROWS = [bytes([number]) * 10 for number in range(200)]


def pieces(of: int, begun: list[int]) -> Forward[bytes]:
    """ROWS in pieces of `of` rows; notes what was begun."""

    def begin(row: int) -> tuple[int, Iterator[bytes]]:
        first = row // of * of
        begun.append(first)
        return first, iter(ROWS[first : first + of])

    return Forward(begin, len, lambda row: row // of * of)


@pytest.mark.parametrize("of", [1, 7, 200])
def test_rows_asked_for_in_any_order_are_the_right_ones(monkeypatch: pytest.MonkeyPatch, of: int) -> None:
    monkeypatch.setattr(forward, "_ROWS", 5)
    monkeypatch.setattr(forward, "_BYTES", 0)
    rows = pieces(of, [])
    for row in random.Random(of).choices(range(200), k=500):
        assert rows[row] == ROWS[row]
    with pytest.raises(IndexError):
        rows[200]
    assert rows[3] == ROWS[3]


def test_threads_that_ask_nearly_in_order_do_not_start_over() -> None:
    begun: list[int] = []
    rows = pieces(200, begun)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(rows.__getitem__, range(200))) == ROWS
    assert begun == [0]


def test_more_threads_than_rows_are_kept_do_not_start_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_ROWS", 4)
    monkeypatch.setattr(forward, "_BYTES", 0)
    begun: list[int] = []
    rows, all_there = pieces(200, begun), threading.Barrier(16)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: all_there.wait(), range(16)))
        assert [rows[row] for row in reversed(range(16))] == ROWS[15::-1]
    assert begun == [0]


def test_two_that_read_one_file_do_not_start_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_ROWS", 4)
    monkeypatch.setattr(forward, "_BYTES", 0)
    begun: list[int] = []
    rows = pieces(100, begun)
    for row in range(100):
        assert (rows[row], rows[100 + row]) == (ROWS[row], ROWS[100 + row])
    assert begun == [0, 100]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_BYTES", 1000)
    rows = pieces(200, [])
    assert rows[199] == ROWS[199]
    assert len(rows._kept) == 100
    monkeypatch.setattr(forward, "_ROWS", 150)
    rows = pieces(200, [])
    assert rows[199] == ROWS[199]
    assert len(rows._kept) == 150


def test_a_fault_in_the_middle_begins_anew() -> None:
    faults = [OSError(errno.EIO, "gone for a moment")]

    def begin(row: int) -> tuple[int, Iterator[bytes]]:
        def rows() -> Iterator[bytes]:
            for number, value in enumerate(ROWS):
                if number == 10 and faults:
                    raise faults.pop()
                yield value

        return 0, rows()

    rows = Forward(begin, len)
    with pytest.raises(OSError, match="gone for a moment"):
        rows[10]
    assert rows[10] == ROWS[10]


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "error"), [(1 << 20, OSError), (1 << 40, BadImageError)])
def test_too_little_memory_is_no_damage_of_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, error: type[Exception]
) -> None:
    """More than any image has is what a damaged header claims."""
    listing = list_samples(str(write_parquet(tmp_path / "x.parquet", {"a": b"A", "b": b"B"})))
    source, plain = open_source(listing.root), tables.bytes_of

    lacks = pa.ArrowMemoryError(f"malloc of size {asked} failed")
    monkeypatch.setattr(tables, "bytes_of", Mock(side_effect=lacks))
    with pytest.raises(error):
        source.read(listing.samples[0].uri)
    monkeypatch.setattr(tables, "bytes_of", plain)
    if error is OSError:
        assert source.read(listing.samples[0].uri) == b"A"


@pytest.mark.slow
def test_a_large_row_group_is_not_held_as_a_whole(tmp_path: Path) -> None:
    """64 MB in one row group, read with what the reader keeps and pages of at most 1 MB."""
    data = random.Random(0).randbytes(1 << 20)
    with pq.ParquetWriter(
        tmp_path / "x.parquet", pa.schema([("image", pa.binary())]), compression="none", write_batch_size=1
    ) as writer:
        writer.write_table(pa.table({"image": [data[n:] + data[:n] for n in range(64)]}), row_group_size=64)
    source = open_source(f"parquet:{tmp_path}")
    before = pa.total_allocated_bytes()
    peak = 0
    for row in range(64):
        assert source.read(f"x.parquet#{row}")[:50] == (data[row:] + data[:row])[:50]
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 32 << 20


class ThrottledError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__("slow down")
        self.status = status


class BotoError(Exception):
    """As botocore's ClientError says it."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def of(module: str, name: str, base: type = Exception, **about: int) -> Exception:
    """An error of a package that is not installed here."""
    error: Exception = type(name, (base,), {"__module__": module})()
    vars(error).update(about)
    return error


def smb(code: int, status: int = 0xC0000034) -> Exception:
    """As smbprotocol says it, which has an `errno` for some statuses only."""
    error = of("smbprotocol.exceptions", "SMBOSError", OSError, ntstatus=status)
    error.errno, error.filename = code, "share/x"  # type: ignore[attr-defined]
    return caused(error, of("smbprotocol.exceptions", "SMBResponseException", status=status))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), True), (ConnectionResetError(), True), (EOFError(), True), (OSError(errno.EIO, "x"), True),
        (FileNotFoundError(), False), (PermissionError(), False), (ValueError(), False),
        (ThrottledError(429), True), (ThrottledError(500), True), (ThrottledError(503), True),
        (ThrottledError(404), False), (caused(FileNotFoundError(), ThrottledError(429)), True),
        (caused(OSError(errno.EIO, "x"), BotoError("InternalError", 500)), True),
        (caused(OSError(errno.EINVAL, "x"), BotoError("InvalidRequest", 400)), False),
        (caused(PermissionError(), BotoError("AccessDenied", 403)), False),
        (ftplib.error_temp("421 Too many connections."), True), (ftplib.error_perm("530 Login incorrect."), False),
        (caused(FileNotFoundError(), ftplib.error_temp("450 Busy.")), True),
        (of("paramiko.ssh_exception", "SSHException"), True), (of("asyncssh.misc", "ConnectionLost"), True),
        (of("paramiko.ssh_exception", "BadHostKeyException"), False), (of("asyncssh.sftp", "SFTPNoSuchFile"), False),
        (of("paramiko.ssh_exception", "AuthenticationException"), False),
        (of("gcsfs.retry", "HttpError", code=503), True), (of("gcsfs.retry", "HttpError", code=404), False),
        (of("azure.core.exceptions", "ServiceRequestError"), True), (of("httpx", "InvalidURL"), False),
        (of("httpx", "ReadError"), True), (of("smbprotocol.exceptions", "SMBConnectionClosed"), True),
        (of("smbprotocol.exceptions", "LogonFailure", status=0xC000006D), False),
        (smb(errno.ENOENT), False), (smb(errno.EACCES), False), (smb(0, 0xC0000022), False),
        (smb(0, 0xC000000F), False), (smb(errno.EPERM, 0xC0000043), True), (smb(0, 0xC00000B5), True),
        (of("json", "HttpError"), False),
    ],
)  # fmt: skip
def test_what_may_pass(error: Exception, expected: bool) -> None:
    assert may_pass(error) is expected


AZURE = type("ClientAuthenticationError", (Exception,), {"__module__": "azure.core.exceptions"})


def test_trying_again_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(retry, "time", SimpleNamespace(sleep=waited.append))  # other threads sleep, too
    overloaded = AZURE("503")  # of the server that gives tokens
    overloaded.status_code = 503
    failing = [TimeoutError("1"), overloaded, ConnectionResetError("3")]

    def action() -> str:
        if failing:
            raise failing.pop(0)
        return "there"

    assert patiently(action, "s3://x") == "there"
    assert len(waited) == 3
    for wait, mean in zip(waited, retry.WAITS, strict=True):
        assert mean / 2 <= wait <= mean * 1.5
    failing += [TimeoutError("again")] * 4
    with pytest.raises(PassingError, match="s3://x: TimeoutError: again") as raised:
        patiently(action, "s3://x")
    assert raised.value.errno == errno.EIO
    with pytest.raises(FileNotFoundError):
        patiently(Mock(side_effect=FileNotFoundError), "s3://x")
    assert len(waited) == 6


def google(message: str) -> Exception:
    error = of("gcsfs.retry", "HttpError", code=401)
    error.args = (f"{message}, 401",)
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (caused(PermissionError("no"), BotoError("ExpiredToken", 400)), "ExpiredToken"),
        (caused(OSError(errno.EINVAL, "Bad Request"), BotoError("400", 400)), "400"),  # HEAD
        (of("azure.identity", "CredentialUnavailableError", AZURE), "ClientAuthenticationError"),
        (google("Invalid Credentials"), "Invalid Credentials"),
        (caused(of("gcsfs.retry", "NonRetryableError"), of("google.auth.exceptions", "RefreshError")), "RefreshError"),
        (google("Anonymous caller does not have storage.objects.get access"), None),
        (of("aiohttp", "ClientResponseError", status=401), None),
        (caused(PermissionError("no"), BotoError("AccessDenied", 403)), None),
    ],
)
def test_refused_credentials_are_named(error: Exception, code: str | None) -> None:
    with pytest.raises((type(error), StoreError)) as raised:
        patiently(Mock(side_effect=error), "s3://x")
    if code is None:
        assert raised.value is error
    else:
        assert isinstance(raised.value, StoreError)
        assert f"s3://x: the credentials are missing, expired or refused ({code}); " in str(raised.value)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setattr(fsspec.core, "url_to_fs", Mock(side_effect=ImportError("Install s3fs to access S3")))
    with pytest.raises(UserError, match=r"not installed: pip install .*\[s3\]'$"):
        open_source("s3://bucket/x")
    with pytest.raises(UserError, match=r"not installed: Install s3fs to access S3$"):
        open_source("gs://bucket/x")


def test_a_large_object_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/large/x.png", bytes(2000))
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 1000)
    source = open_source("memory://large")
    with pytest.raises(BadImageError) as error:
        source.read("x.png")
    assert error.value.error == "TooLarge"


def test_keys_of_a_store_are_literal(s3: str, tmp_path: Path) -> None:
    import s3fs

    keys = {"x//y.png": b"A", "x/y.png": b"B", "/y.png": b"C"}
    for key, data in keys.items():
        s3fs.S3FileSystem().pipe_file(f"bucket/literal/{key}", data)
    assert read_all(list_samples("s3://bucket/literal")) == keys
    written = {"x//y.png": b"A", "./x/y.png": b"B", "s3://bucket/literal//y.png": b"C"}
    write_list(tmp_path / "list.csv", [{"path": path} for path in written])
    assert read_all(list_samples(str(tmp_path / "list.csv"), "s3://bucket/literal")) == written


@pytest.mark.parametrize(
    ("known", "found", "same"),
    [
        (Version(5, {"Last-Modified": "x", "ETag": "a"}), Version(5, {"Last-Modified": "x", "ETag": "b"}), True),
        (Version(5, {"Last-Modified": "x", "ETag": "a"}), Version(5, {"Last-Modified": "y", "ETag": "a"}), True),
        (Version(5, {"Last-Modified": "x"}), Version(5, {"ETag": "a"}), True),
        (Version(5, {}), Version(None, {"ETag": "a"}), True),
        (Version(5, {"mtime_ns": 1}), Version(6, {"mtime_ns": 1}), False),
        (Version(5, {"mtime_ns": 1}), Version(5, {"mtime_ns": 2}), False),
        (Version(5, {"Last-Modified": "x", "ETag": "a"}), Version(5, {"Last-Modified": "y", "ETag": "b"}), False),
    ],
)
def test_a_file_has_changed_if_nothing_that_is_known_agrees(known: Version, found: Version, same: bool) -> None:
    versions = {"x": known}
    if same:
        keep_version(versions, "x", found, "x")
    else:
        with pytest.raises(ChangedError, match="x: has changed since this run listed it"):
            keep_version(versions, "x", found, "x")


def test_a_changed_table_costs_no_row_alone(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", {"a.png": b"a"})
    listing = list_samples(f"{tmp_path}/x.parquet")
    source = open_source(listing.root, {"x.parquet": Version(1, {})})
    with pytest.raises(ChangedError):
        source.read(listing.samples[0].uri)

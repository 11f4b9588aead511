"""Give paths in stores elsewhere the methods of `pathlib.Path`, for every store that fsspec can write."""

import errno
import ftplib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

from fsspec import AbstractFileSystem, available_protocols, filesystem
from upath.extensions import ProxyUPath

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import install_line
from sea_pipeline.storage.clients import cat_part, quote_names, refuse_lost_listing
from sea_pipeline.storage.http_parts import http_parts, is_http
from sea_pipeline.storage.hub import is_dataset, pinned
from sea_pipeline.storage.ranged import ranged_file
from sea_pipeline.storage.retry import (
    PassingError,
    StoreError,
    error_codes,
    error_statuses,
    is_absent,
    lasting_code,
    reason_of,
)
from sea_pipeline.storage.turns import patiently_in_turn

_Result = TypeVar("_Result")

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Values of `errno` for faults of the disk of this machine."""
_NETRC = """write it into ~/.netrc, and set FSSPEC_HTTP='{"client_kwargs": {"trust_env": true}}'"""
_LOGINS = {
    **{name.lower(): f"set FSSPEC_{name}_USERNAME and FSSPEC_{name}_PASSWORD" for name in ("FTP", "SFTP", "SMB")},
    "http": _NETRC,
    "https": _NETRC,
}
"""Where fsspec's own clients take passwords from, by protocol."""
_WITHOUT_LISTINGS = ("sftp", "ssh", "webdav", "webdav+http", "webdav+https")
"""Protocols whose clients keep no listings, and pass options that they do not know to the connection."""
_EXTRAS = {"s3": "s3", "s3a": "s3", "hf": "data"}


class RemotePath(ProxyUPath):
    """A path in a store, with the names of `pathlib.Path`. Make one with `paths.place`.

    Every request is repeated if its fault may pass. Nothing is remembered between two requests, because others write
    there, too. An absent file raises `FileNotFoundError`, as on this machine; every other fault raises `StoreError`.
    `upload` writes, and only whole files.
    """

    __slots__ = ()

    def __str__(self) -> str:
        text, options = str(self.__wrapped__), self.storage_options
        protocol, separator, path = text.partition(":///")
        if not separator or not (host := options.get("host")):
            return text
        # universal_pathlib leaves out the server of FTP, SFTP and SMB.
        user = f"{options['username']}@" if options.get("username") else ""
        port = f":{options['port']}" if options.get("port") else ""
        return f"{protocol}://{user}{host}{port}/{path}"

    @property
    def fs(self) -> AbstractFileSystem:
        """Return the client of the store.

        A forked process gets its own, because connections cannot be shared.
        """
        found = self.__wrapped__.fs
        own = getattr(found, "_pid", os.getpid()) == os.getpid()
        client = found if own else type(found)(**self.storage_options)
        quote_names(client)
        return client

    def exists(self, *, follow_symlinks: bool = True) -> bool:  # noqa: D102
        return self._kind() is not None

    def is_file(self) -> bool:  # noqa: D102
        return self._kind() == "file"

    def is_dir(self) -> bool:  # noqa: D102
        return self._kind() == "directory"

    def stat(self, *, follow_symlinks: bool = True) -> Any:  # noqa: ANN401, D102 - os.stat_result in all but name
        return self._asked(self.__wrapped__.stat)

    def iterdir(self) -> Iterator[Self]:
        """Yield the entries of this folder.

        An absent one has none, because stores have no folders.
        """
        if self.is_dir():
            yield from self._asked(self._entries)

    def read_bytes(self) -> bytes:  # noqa: D102
        data: bytes = self._asked(lambda: self.fs.cat_file(self.path))
        return data

    def read_text(self, encoding: str | None = "utf-8", *_: object) -> str:  # noqa: D102
        return self.read_bytes().decode(encoding or "utf-8")

    def open(self, mode: str = "rb", *_: object) -> BinaryIO:  # type: ignore[override]
        """Open the file to read and to seek in."""
        assert mode == "rb", "files are written whole, by upload"
        size = self.stat().st_size
        parts = http_parts(self.fs, str(self))
        read = self._part if parts is None else parts.part
        return ranged_file(lambda *asked: self._asked(lambda: read(*asked)), self.path, size)

    def unlink(self, missing_ok: bool = False) -> None:  # noqa: D102
        try:
            self._asked(lambda: self.fs.rm_file(self.path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def download(self, file: Path) -> None:
        """Write a copy of it to a file of this machine.

        Raises:
            OSError: that file cannot be written, because the disk is full, for example.
            FileNotFoundError: the store has no such file.
            StoreError: the store refuses it, or fails for long.
        """

        def fetched() -> OSError | None:
            try:
                self.fs.get_file(self.path, str(file))
            except OSError as error:
                if error.errno in _OF_THE_DISK or error.filename == str(file):
                    return error  # which no further request mends
                raise
            return None

        if fault := self._asked(fetched):
            raise fault

    def upload(self, file: Path, *, exclusive: bool = False) -> None:
        """Write a whole file of this machine to this path, in one request.

        Until the request has succeeded, nothing changes in the store.

        Raises:
            FileExistsError: `exclusive` is set, the store supports it, and there is a file already.
            UserError: the path is a dataset on the hub, which `sea-pipeline push` writes.
            StoreError: the store refuses it, or fails for long.
        """
        if is_dataset(str(self)):
            raise UserError(f"{self}: expected a folder; the hub is written by sea-pipeline push, from a finished one")
        options = {"mode": "create"} if exclusive else {}
        try:
            self._asked(lambda: self.fs.put_file(str(file), self.path, **options), "written")
        except FileNotFoundError as error:
            raise StoreError(f"{self}: cannot be written: {one_line(error)}; create it, or choose another place") from (
                error
            )

    def copy_from(self, other: "RemotePath") -> bool:
        """Let the store copy another of its files to this path, without a download.

        Return False, and do nothing, if the other file is in another store.
        """
        same = (self.protocol, self.storage_options) == (other.protocol, other.storage_options)
        if same:
            self._asked(lambda: self.fs.cp_file(other.path, self.path), "written")
        return same

    def _entries(self) -> list[Self]:
        found: list[Self] = []
        with suppress(NotADirectoryError):  # universal_pathlib asks again, and takes a fault for this answer
            found = list(super().iterdir())
        if not found:
            refuse_lost_listing(self.fs, self.path)
        return found

    def _kind(self) -> str | None:
        try:
            kind: str = self._asked(lambda: self.fs.info(self.path))["type"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        return kind

    def _is_lost(self, error: Exception) -> bool:
        """Tell whether an error is FTP's of an absent file, which is the same as that of missing rights."""
        return isinstance(error, ftplib.error_perm) and str(error).startswith("550") and self._kind() is None

    def _part(self, name: str, start: int, length: int) -> bytes:
        # The hub's file system would read 5 MB ahead at every request.
        options = {"cache_type": "none"} if is_dataset(str(self)) else {}
        return cat_part(self.fs, name, start, start + length, **options)

    def _asked(self, action: Callable[[], _Result], what: str = "read") -> _Result:
        """Make a request, repeated if its fault may pass, and turn its errors into ours."""
        try:
            return patiently_in_turn(self.fs, self.path, action, str(self))
        except PassingError as error:
            reason = reason_of(error.__cause__ or error)
            raise StoreError(
                f"{self}: cannot be {what}: tried again and again, and always: {reason}; run the same command again "
                "later (what is finished is kept)"
            ) from error
        except (FileExistsError, NotADirectoryError, UserError):
            raise
        except Exception as error:
            if lasting_code(error) in (errno.ENOENT, errno.ENOTDIR) or self._is_lost(error):
                raise FileNotFoundError(str(self)) from error
            if isinstance(error, FileNotFoundError) and (is_absent(error) or not is_http(str(self))):
                raise
            if "PreconditionFailed" in error_codes(error) or 412 in error_statuses(error):
                raise FileExistsError(str(self)) from error  # some S3 services do not name the condition that failed
            raise StoreError(
                f"{self}: cannot be {what}: {reason_of(error)}; the rights to list, read, write and delete are needed"
            ) from error


def remote_path(url: str) -> RemotePath:
    """Return the path of a URL.

    A dataset on the hub is read at its present commit.

    Raises:
        UserError: see `opening` and `pinned`.
    """
    url = pinned(url)
    protocol = url.partition("://")[0].lower()
    with opening(url):
        options: dict[str, Any] = {} if protocol in _WITHOUT_LISTINGS else {"use_listings_cache": False}
        if protocol == "webdav":  # of which universal_pathlib does not ask the settings of fsspec
            options["base_url"] = filesystem(protocol).storage_options["base_url"]
        path = RemotePath(url if url.endswith("://") else url.rstrip("/"), **options)
        path.fs  # noqa: B018 - paths below this one share it
    return path


def refuse_password(url: str) -> None:
    """Refuse a URL that holds a password, which messages and records would show.

    Raises:
        UserError: it does.
    """
    if found := re.search(r"\b(?!github:)(\w+)://[^/@]*:[^/@]*@", url):  # github://OWNER:REPOSITORY@REVISION
        login = _LOGINS.get(found[1].lower(), "set it as the service's own tools do")
        raise UserError(f"{found[1]}://…@…: expected no password in a URL; {login}")


@contextmanager
def opening(url: str) -> Iterator[None]:
    """Turn the errors of a bad URL into a `UserError`.

    Raises:
        UserError: it holds a password, its protocol is unknown, or needs a package that is not installed.
    """
    protocol = re.split("://|::", url)[0].lower()
    refuse_password(url)
    if url.endswith("::") or (protocol == "dir" and "::" not in url):
        raise UserError(f"{url}: expected a path or a URL behind ::; found none")
    try:
        yield
    except ImportError as error:
        install = install_line(_EXTRAS[protocol]) if protocol in _EXTRAS else one_line(error)
        raise UserError(f"{url}: {protocol}:// needs a package that is not installed: {install}") from error
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever an archive or its own store raises
        if isinstance(error, TypeError) and "required" in str(error):
            lacking = re.findall(r"'(\w+)'", str(error))
            inner = [protocol, *re.findall(r"(\w+)://", url)][-1]
            names = " and ".join(f"FSSPEC_{inner}_{name}".upper() for name in lacking)
            raise UserError(f"{url}: {inner}:// needs what a URL does not say; set {names}") from error
        unknown = isinstance(error, ValueError) and protocol not in available_protocols()
        what = "expected a URL that fsspec knows" if unknown else "cannot be opened"
        raise UserError(f"{url}: {what}; {reason_of(error)}") from error

"""Paths behind URLs: what `pathlib.Path` is for this machine, for every store that fsspec can write."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

from fsspec import AbstractFileSystem
from upath.extensions import ProxyUPath

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.storage.hub import is_dataset, pinned
from sea_pipeline.storage.ranged import ranged_file
from sea_pipeline.storage.retry import PassingError, StoreError, error_codes, error_statuses, patiently

_Result = TypeVar("_Result")

_EXTRAS = {"s3": "s3", "s3a": "s3", "hf": "data"}


class RemotePath(ProxyUPath):
    """A path of a store, with the names of `pathlib.Path`. Make one with `paths.place`.

    Every request is tried again where a fault may pass, and nothing is remembered between two of them: others write
    there, too. A file that is absent is `FileNotFoundError`, as it is on this machine; what else goes wrong is a
    `StoreError`. Writing is `upload`, of whole files.
    """

    __slots__ = ()

    @property
    def fs(self) -> AbstractFileSystem:
        """What speaks with the store. A forked process gets its own: connections cannot be shared."""
        found = self.__wrapped__.fs
        own = getattr(found, "_pid", os.getpid()) == os.getpid()
        return found if own else type(found)(**self.storage_options)

    def exists(self, *, follow_symlinks: bool = True) -> bool:  # noqa: D102
        return self._kind() is not None

    def is_file(self) -> bool:  # noqa: D102
        return self._kind() == "file"

    def is_dir(self) -> bool:  # noqa: D102
        return self._kind() == "directory"

    def stat(self, *, follow_symlinks: bool = True) -> Any:  # noqa: ANN401, D102 - os.stat_result in all but name
        return self._asked(self.__wrapped__.stat)

    def iterdir(self) -> Iterator[Self]:
        """What lies in this folder; nothing where it is absent, as stores have no folders."""
        if self.is_dir():
            yield from self._asked(lambda: list(super(RemotePath, self).iterdir()))

    def read_bytes(self) -> bytes:  # noqa: D102
        data: bytes = self._asked(lambda: self.fs.cat_file(self.path))
        return data

    def read_text(self, encoding: str | None = "utf-8", *_: object) -> str:  # noqa: D102
        return self.read_bytes().decode(encoding or "utf-8")

    def open(self, mode: str = "rb", *_: object) -> BinaryIO:  # type: ignore[override]
        """The file, to read and seek in."""
        assert mode == "rb", "files are written whole, by upload"
        return ranged_file(self._part, self.path, self.stat().st_size)

    def unlink(self, missing_ok: bool = False) -> None:  # noqa: D102
        try:
            self._asked(lambda: self.fs.rm_file(self.path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def download(self, file: Path) -> None:
        """Writes a copy into a file of this machine."""
        self._asked(lambda: self.fs.get_file(self.path, str(file)))

    def upload(self, file: Path, *, exclusive: bool = False) -> None:
        """Writes a whole file of this machine here, in one request: until that has succeeded nothing changes.

        With `exclusive`, in a store that can do it, there is none yet: else `FileExistsError`.
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
        """Has the store copy a file here by itself; does nothing and gives False if the other is of another store."""
        same = (self.protocol, self.storage_options) == (other.protocol, other.storage_options)
        if same:
            self._asked(lambda: self.fs.cp_file(other.path, self.path), "written")
        return same

    def _kind(self) -> str | None:
        try:
            kind: str = self._asked(lambda: self.fs.info(self.path))["type"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        return kind

    def _part(self, name: str, start: int, length: int) -> bytes:
        if not length:
            return b""
        # The hub's file system would read 5 MB ahead at every request.
        options = {"cache_type": "none"} if is_dataset(str(self)) else {}
        data: bytes = self._asked(lambda: self.fs.cat_file(name, start=start, end=start + length, **options))
        return data

    def _asked(self, action: Callable[[], _Result], what: str = "read") -> _Result:
        try:
            return patiently(action, str(self))
        except PassingError as error:
            reason = one_line(error.__cause__ or error)
            raise StoreError(
                f"{self}: cannot be {what}: tried again and again, and always: {reason}; run the same command again "
                "later (what is finished is kept)"
            ) from error
        except (FileNotFoundError, FileExistsError, NotADirectoryError, UserError):
            raise
        except Exception as error:
            if "PreconditionFailed" in error_codes(error) or 412 in error_statuses(error):
                raise FileExistsError(str(self)) from error  # some S3 services do not say of which condition
            raise StoreError(
                f"{self}: cannot be {what}: {one_line(error)}; the rights to list, read, write and delete are needed"
            ) from error


def remote_path(url: str) -> RemotePath:
    """The path behind a URL, of a dataset on the hub at its commit of now; raises as `opening` and `pinned`."""
    url = pinned(url)
    with opening(url):
        path = RemotePath(url if url.endswith("://") else url.rstrip("/"), use_listings_cache=False)
        path.fs  # noqa: B018 - paths below this one share it
    return path


@contextmanager
def opening(url: str) -> Iterator[None]:
    """Tells what is wrong with a URL.

    Raises:
        UserError: it holds a password, its protocol is unknown, or needs a package that is not installed.
    """
    protocol = re.split("://|::", url)[0].lower()
    if re.match(r"[^/]*://[^/@]*:[^/@]*@", url):
        raise UserError(f"{protocol}://…@…: expected no password in a URL; set it as the service's own tools do")
    try:
        yield
    except ImportError as error:
        install = f"pip install 'sea-pipeline[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else one_line(error)
        raise UserError(f"{url}: {protocol}:// needs a package that is not installed: {install}") from error
    except ValueError as error:
        raise UserError(f"{url}: expected a URL that fsspec knows; {one_line(error)}") from error

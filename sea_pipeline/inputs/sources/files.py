"""Read and list files below a root, on this machine or through fsspec."""

import glob
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.pixels import BadImageError, read_file
from sea_pipeline.inputs.sources.base import Source, shown_file, unlisted
from sea_pipeline.inputs.sources.versions import Versions, keep_version, local_version
from sea_pipeline.storage.paths import is_url, without_local
from sea_pipeline.storage.ranged import ranged_file


class Files(Source, Protocol):
    """Files below a root. It is also a source of images, whose `uri`s are the names of the files, all equally near."""

    root: str
    versions: Versions
    """Of the files that were opened, or that a listing has opened, with which `refuse_changed` compares them."""

    def read(self, uri: str, start: int = 0, length: int | None = None) -> bytes:
        """Read a file's bytes, or a part of them, or fewer if the file ends before.

        See `Source.read`.
        """
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a file to read and to seek in.

        Raises:
            OSError: that is not possible.
            UserError: it has changed since it was opened first.
        """
        ...

    def names(self, left_out: Counter[str]) -> Iterator[str]:
        """Yield the name of every file below the root, in any order.

        Names that are not UTF-8 have surrogate escapes.
        """
        ...

    def matching(self, pattern: str) -> list[str]:
        """List the files that match a glob pattern."""
        ...


def open_files(root: str) -> Files:
    """Open the files below a folder of this machine, or below a URL.

    Raises:
        UserError: the URL's protocol is unknown, or needs a package that is not installed.
    """
    root = without_local(root)
    if is_url(root):
        from sea_pipeline.inputs.sources.remote import RemoteFiles

        return RemoteFiles(root)
    return LocalFiles(_as_it_is(root))


def on_disk(name: str) -> str:
    """Convert a name in UTF-8 to Python's name of the file, which differs if the locale has another encoding."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def in_utf8(path: str) -> str:
    """Convert Python's name of a file to UTF-8, with surrogate escapes for other bytes, as the inverse of `on_disk`."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def in_other_form(root: Path, name: str) -> str:
    """Say that a missing file is there by a name that looks the same, or nothing."""
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, name)
        if other != name and os.path.isfile(root / on_disk(other)):  # noqa: PTH113 - is_file raises for long names
            return f", but a name that looks the same, in Unicode's form {form}: rename the file, or write its name so"
    return ""


def _as_it_is(root: str) -> Path:
    """Find the folder that a user or a record means.

    A record's text is in UTF-8 whatever the locale is, a user's text is in the locale's encoding.
    """
    path, other = Path(root), Path(on_disk(root))
    try:
        return path if path == other or path.exists() else other
    except UnicodeEncodeError:  # the locale's encoding lacks a character of it
        return other


@contextmanager
def reading(shown: str) -> Iterator[None]:
    """Turn an `OSError` in the block into one line about an input that is read as a whole, such as a list."""
    try:
        yield
    except BadImageError as error:
        raise UserError(f"{shown}: cannot be read: {error.message}") from error
    except FileNotFoundError as error:
        raise UserError(f"{shown}: expected a file; found nothing there") from error
    except OSError as error:
        raise UserError(f"{shown}: cannot be read: {error.strerror or error or type(error).__name__}") from error


class LocalFiles:
    """The files below a folder of this machine."""

    readers = 1
    random_access = True

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.root = in_utf8(str(self._root))
        self.versions: Versions = {}

    def is_there(self) -> bool:
        """Tell whether the folder exists."""
        return self._root.is_dir()

    def read(self, uri: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Files`."""
        try:
            return read_file(self._root / on_disk(uri), start, length)
        except BadImageError as error:
            if error.error == "FileNotFoundError" and not self._root.is_dir():
                raise UserError(f"{self.root}: is gone; bring it back and run the same command again") from error
            if error.error == "FileNotFoundError":
                raise BadImageError(error.stage, error.error, error.message + in_other_form(self._root, uri)) from error
            raise

    def where(self, uri: str) -> tuple[str, int]:
        """See `Files`."""
        return "", 0

    def refuse_changed(self, uris: Sequence[str]) -> None:
        """See `Files`."""
        for name in self.versions.keys() & set(uris):
            with suppress(FileNotFoundError):  # reading the images says so
                self._status(name)

    def open(self, name: str) -> BinaryIO:
        """See `Files`."""
        status = self._status(name)
        if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):  # its size is 0, whatever it holds
            shown = shown_file(self.root, name)
            raise UserError(f"{shown}: expected a file; found a pipe or a socket; write what comes from it to a file")
        size = status.st_size
        if not size and (path := self._root / on_disk(name)).is_file():
            path.open("rb").close()  # an empty file is never read, so only this shows that it may not be
        return ranged_file(self._part, name, size)

    def _status(self, name: str) -> os.stat_result:
        status = (self._root / on_disk(name)).stat()
        keep_version(self.versions, name, local_version(status), shown_file(self.root, name))
        return status

    def _part(self, name: str, start: int, length: int) -> bytes:
        with (self._root / on_disk(name)).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def matching(self, pattern: str) -> list[str]:
        """See `Files`."""
        found = glob.glob(pattern, root_dir=self._root, recursive=True)  # noqa: PTH207 - relative to the root
        return [in_utf8(name) for name in found if (self._root / name).is_file()]

    def names(self, left_out: Counter[str]) -> Iterator[str]:
        """See `Files`. Follow links to folders unless they lead back to a folder above them."""
        top = os.fsencode(self._root)
        stack: list[tuple[bytes, tuple[tuple[int, int], ...]]] = [(b"", tuple(_above(self._root)))]
        while stack:
            inner, trail = stack.pop()
            here = os.path.join(top, inner)  # noqa: PTH118 - bytes: names need not be UTF-8
            try:
                status = os.stat(here)  # noqa: PTH116
                entries = list(os.scandir(here))
            except OSError as error:
                if not inner:
                    raise UserError(f"{self.root}: cannot be listed: {error.strerror}") from error
                left_out[unlisted(os.fsdecode(inner))] += 1
                continue
            identity = (status.st_dev, status.st_ino)
            if status.st_ino and identity in trail:  # 0 is what network drives of Windows say of each folder
                left_out["links that lead back to a folder above them"] += 1
                continue
            for entry in entries:
                name = os.path.join(inner, entry.name)  # noqa: PTH118
                if _is_folder(entry):
                    stack.append((name, (*trail, identity)))
                else:
                    yield name.decode("utf-8", "surrogateescape")


def _above(root: Path) -> Iterator[tuple[int, int]]:
    """Yield what identifies each folder above the root, if it can be asked for."""
    for folder in Path(os.path.realpath(root)).parents:
        with suppress(OSError):
            status = folder.stat()
            yield status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False

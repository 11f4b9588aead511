"""Files below a root, by name: on this machine, or through fsspec."""

import glob
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.pixels import BadImageError, read_file
from sea_pipeline.storage.leftovers import LEFTOVERS, is_leftover
from sea_pipeline.storage.paths import is_url
from sea_pipeline.storage.ranged import ranged_file


class Files(Protocol):
    """Files below a root. It is a source of images, too, whose `uri`s are the names of the files."""

    root: str
    readers: int
    random_access: bool

    def read(self, uri: str, start: int = 0, length: int | None = None) -> bytes:
        """A file's bytes, or a part of them; fewer where the file ends. See `Source.read`."""
        ...

    def where(self, uri: str) -> tuple[str, int]:
        """See `Source`: files are equally near."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A file to read and seek in; `OSError` where that is not possible."""
        ...

    def names(self, left_out: Counter[str]) -> Iterator[str]:
        """Every file below the root, in any order; names that are not UTF-8 with surrogate escapes."""
        ...

    def matching(self, pattern: str) -> list[str]:
        """The files that a glob pattern means."""
        ...


def open_files(root: str) -> Files:
    """The files below a folder of this machine, or below a URL.

    Raises:
        UserError: the URL's protocol is unknown, or needs a package that is not installed.
    """
    for local in ("file://", "local://"):
        root = root.removeprefix(local)
    if is_url(root):
        from sea_pipeline.inputs.sources.remote import RemoteFiles

        return RemoteFiles(root)
    return LocalFiles(_as_it_is(root))


def on_disk(name: str) -> str:
    """What Python calls a file whose name is these characters in UTF-8: the same, unless the locale is another one."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def in_utf8(path: str) -> str:
    """The name in UTF-8 of what Python calls `path`: the other way round; surrogate escapes for what is no UTF-8."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def _as_it_is(root: str) -> Path:
    """The folder that a user's text or a record means, of which the latter is in UTF-8 whatever the locale is."""
    path, other = Path(root), Path(on_disk(root))
    try:
        return path if path == other or path.exists() else other
    except UnicodeEncodeError:  # the locale's encoding has no such character
        return other


@contextmanager
def reading(shown: str) -> Iterator[None]:
    """Turns an `OSError` into one line about an input that is read as a whole: a list, a tar's headers."""
    try:
        yield
    except BadImageError as error:
        raise UserError(f"{shown}: cannot be read: {error.message}") from error
    except FileNotFoundError as error:
        raise UserError(f"{shown}: expected a file; found nothing there") from error
    except OSError as error:
        raise UserError(f"{shown}: cannot be read: {error.strerror or error or type(error).__name__}") from error


class LocalFiles:
    """The files below a folder."""

    readers = 1
    random_access = True

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.root = in_utf8(str(self._root))

    def is_there(self) -> bool:
        """Whether there is such a folder."""
        return self._root.is_dir()

    def read(self, uri: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Files`."""
        try:
            return read_file(self._root / on_disk(uri), start, length)
        except BadImageError as error:
            if error.error == "FileNotFoundError" and not self._root.is_dir():
                raise UserError(f"{self.root}: is gone; bring it back and run the same command again") from error
            raise

    def where(self, uri: str) -> tuple[str, int]:
        """See `Files`."""
        return "", 0

    def open(self, name: str) -> BinaryIO:
        """See `Files`."""
        return ranged_file(self._part, name, (self._root / on_disk(name)).stat().st_size)

    def _part(self, name: str, start: int, length: int) -> bytes:
        with (self._root / on_disk(name)).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def matching(self, pattern: str) -> list[str]:
        """See `Files`."""
        found = glob.glob(pattern, root_dir=self._root, recursive=True)  # noqa: PTH207 - relative to the root
        return [in_utf8(name) for name in found if (self._root / name).is_file()]

    def names(self, left_out: Counter[str]) -> Iterator[str]:
        """See `Files`. Links to folders are followed unless they lead back to where we came from."""
        top = os.fsencode(self._root)
        stack: list[tuple[bytes, tuple[tuple[int, int], ...]]] = [(b"", ())]
        while stack:
            inner, trail = stack.pop()
            here = os.path.join(top, inner)  # noqa: PTH118 - bytes: names need not be UTF-8
            try:
                status = os.stat(here)  # noqa: PTH116
                entries = list(os.scandir(here))
            except OSError as error:
                if not inner:
                    raise UserError(f"{self.root}: cannot be listed: {error.strerror}") from error
                is_left = is_leftover(os.fsdecode(inner))  # as `lost+found` is, which is root's
                left_out[LEFTOVERS if is_left else "folders that cannot be listed"] += 1
                continue
            identity = (status.st_dev, status.st_ino)
            if identity in trail:
                left_out["links that lead back to a folder above them"] += 1
                continue
            for entry in entries:
                name = os.path.join(inner, entry.name)  # noqa: PTH118
                if _is_folder(entry):
                    stack.append((name, (*trail, identity)))
                else:
                    yield name.decode("utf-8", "surrogateescape")


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False

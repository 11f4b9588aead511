"""Read and list files through fsspec.

Credentials are left to fsspec: the environment, and the configuration files of the service's own package.
"""

import errno
import glob
import html
import os
import posixpath
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, unquote

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.utils import glob_translate

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.inputs.pixels import MAX_FILE_BYTES, BadImageError
from sea_pipeline.inputs.sources.base import shown_file, unlisted
from sea_pipeline.inputs.sources.versions import Versions, keep_version, store_version
from sea_pipeline.storage.clients import cat_part, innermost, listed, quote_names
from sea_pipeline.storage.http_parts import MOST_WHOLE, http_parts, is_http
from sea_pipeline.storage.ranged import ranged_file
from sea_pipeline.storage.remote import opening
from sea_pipeline.storage.retry import (
    PassingError,
    error_codes,
    error_statuses,
    is_absent,
    is_refusal,
    lasting_code,
    reason_of,
)
from sea_pipeline.storage.turns import patiently_in_turn, reads_at_once

_Answer = TypeVar("_Answer")
_QUOTED = "!#$%&'()*+,/:;=?@[]~"
"""Characters that stay in a URL which may be quoted already."""
_READERS = 16
"""Threads that mostly wait for the network."""
_PER_REQUEST = 16
"""Images of a shard for each file whose version is asked again."""
_DEEPEST = 100
"""The most folders inside each other, because some servers answer any address with the same page of links."""


class RemoteFiles:
    """The files below a URL. Names are literal, so characters that an fsspec URL gives a meaning have none in them."""

    random_access = True

    def __init__(self, url: str) -> None:
        with opening(url):
            self._fs, top = fsspec.core.url_to_fs(url)
        self.root = url if url.endswith("://") else url.rstrip("/")
        self.readers = _READERS if reads_at_once(self._fs) else 1
        self._is_web = is_http(url)
        self._inner = innermost(self._fs)
        quote_names(self._inner)
        self._parts = http_parts(self._fs, url)
        self.versions: Versions = {}
        # Pages list their own folder as a server writes it, so that spaces and other letters must be quoted here, too.
        self._top = quote(top.rstrip("/"), safe=_QUOTED) if self._is_web else top.rstrip("/")
        self._is_dotted = _is_dotted(self._inner) and not (top == "." or top.startswith("./"))
        if self._is_dotted:
            self._top = f"./{self._top}".rstrip("/")

    def read(self, uri: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Files`."""
        if length is not None and length > MAX_FILE_BYTES:
            raise BadImageError("read", "TooLarge", f"expected at most {MAX_FILE_BYTES:,} bytes, found {length:,}")
        try:
            data = self.part(uri, start, MAX_FILE_BYTES + 1 if length is None else length)
        except PassingError:
            raise
        except OSError as error:
            is_absent_file = isinstance(error, FileNotFoundError)  # whose message is only a path
            if is_absent_file and not self._is_web and not self._there():
                raise UserError(f"{self.root}: is gone; bring it back and run the same command again") from error
            reason = f"no such file in {self.root}" if is_absent_file else one_line(error)
            raise BadImageError("read", type(error).__name__, reason) from error
        if len(data) > MAX_FILE_BYTES:
            raise BadImageError("read", "TooLarge", f"expected at most {MAX_FILE_BYTES:,} bytes, found more")
        return data

    def where(self, uri: str) -> tuple[str, int]:
        """See `Files`."""
        return "", 0

    def refuse_changed(self, uris: Sequence[str]) -> None:
        """See `Files`. Ask at most once for `_PER_REQUEST` images, which may be scattered over any number of files."""
        names = sorted(self.versions.keys() & set(uris))
        for name in random.sample(names, min(len(names), 1 + len(uris) // _PER_REQUEST)):
            self._fs.invalidate_cache(self._path(name))
            with suppress(FileNotFoundError, PermissionError):  # reading the images says so
                self._info(name)

    def part(self, name: str, start: int, length: int) -> bytes:
        """Read at most `length` bytes of a file from `start` on, or fewer if it ends before."""
        if not length:
            return b""

        path = self._path(name)

        def ranged() -> bytes:
            try:
                if self._parts:
                    return self._parts.part(path, start, length)
                return self._fetched(path, start, start + length)
            except Exception as error:
                if 416 in error_statuses(error) or "InvalidRange" in error_codes(error):
                    return b""  # the file ends before `start`
                raise

        return self._asked(path, ranged, shown_file(self.root, name))

    def _fetched(self, path: str, start: int, end: int) -> bytes:
        """Read a part of a file by fsspec. Of web servers, only those behind a cache are read so."""
        try:
            return cat_part(self._fs, path, start, end)
        except FileNotFoundError:
            if not self._is_web:
                raise
            self._inner.info(path)  # raises with the status; a cache takes each of a server's faults for a missing file
            return cat_part(self._fs, path, start, end)

    def open(self, name: str) -> BinaryIO:
        """See `Files`."""
        size = self._info(name)["size"]
        if size is None:
            size = len(self.part(name, 0, MOST_WHOLE + 1))
            if size > MOST_WHOLE:
                reason = f"the server does not say how long it is, and it has more than {MOST_WHOLE:,} bytes"
                raise OSError(errno.EFBIG, f"{reason}; download it")
        return ranged_file(self.part, name, size)

    def names(self, left_out: Counter[str]) -> Iterator[str]:
        """See `Files`."""
        found = self._found(lambda: self._below(self._top, left_out))
        if found is None or not (found or self._is_web or self._there()):
            raise UserError(f"{self.root}: expected a folder of images; found nothing there")
        yield from found

    def matching(self, pattern: str) -> list[str]:
        """See `Files`."""
        if _has_pages(self._fs):
            is_one = self._is_web and not glob.has_magic(pattern)
            return self._found(lambda: self._one(pattern) if is_one else self._matching_on_pages(pattern)) or []
        path = self._path(pattern)
        return self._found(lambda: self._patiently(path, lambda: self._fs.glob(path), self.root)) or []

    def _one(self, name: str) -> list[str]:
        """Return the path of a file, which must be there. fsspec's `exists` takes a server's faults for a no."""
        self.part(name, 0, 1)
        return [self._path(name)]

    def _matching_on_pages(self, pattern: str) -> list[str]:
        """Find the paths that match a pattern in a server's listings. fsspec's `glob` compares with quoted names."""
        folder = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
        depth = None if "**" in pattern else pattern[len(folder) :].lstrip("/").count("/") + 1
        found = self._below(self._path(folder).rstrip("/"), None, depth)
        wanted = re.compile(glob_translate(pattern))
        return [path for path in found if wanted.match(self._name(path))]

    def _below(self, top: str, left_out: Counter[str] | None, depth: int | None = None) -> list[str]:
        """List the files of a folder and of those below it, page by page if the service has no other way.

        fsspec's own walk takes a page that cannot be fetched for an empty one.

        Args:
            top: the folder.
            left_out: counts folders below it that are refused; None if a refusal ends the listing.
            depth: how many folders deep; None for all.
        """
        if not _has_pages(self._fs):
            return self._patiently(top, lambda: list(self._fs.find(top)), self.root)
        ahead, seen, found = [(top, 1)], {self._plain(top)}, dict[str, None]()
        while ahead:
            folder, level = ahead.pop()
            if level > _DEEPEST:
                raise UserError(
                    f"{folder}: expected fewer folders inside each other; found {_DEEPEST}; give a list of the images"
                )
            for entry in self._entries(folder, left_out, is_top=folder == top):
                path = entry["name"].rstrip("/")
                if entry["type"] != "directory":
                    found[entry["name"]] = None
                elif (plain := self._plain(path)) not in seen and not plain.startswith("../") and level != depth:
                    seen.add(plain)
                    ahead.append((path, level + 1))
        return list(found)

    def _entries(self, folder: str, left_out: Counter[str] | None, *, is_top: bool) -> list[dict[str, Any]]:
        try:
            return self._patiently(folder, lambda: listed(self._fs, folder), folder)
        except Exception as error:
            if is_top or not is_refusal(error) or (left_out is None and not isinstance(error, FileNotFoundError)):
                raise
            if left_out is not None:
                left_out[unlisted(self._name(folder))] += 1
            return []

    def _plain(self, folder: str) -> str:
        """Name a folder below the root so that each has one name. A web server's links may hold dots."""
        name = folder[len(self._top) :].lstrip("/")
        return f"{posixpath.normpath(name)}/" if self._is_web else name

    def _found(self, listing: Callable[[], list[str]]) -> list[str] | None:
        """Return the names of the listed files, or None if nothing is there."""
        self._fs.invalidate_cache()
        try:
            paths = listing()
        except FileNotFoundError:
            return None
        except UserError:
            raise
        except Exception as error:  # a name that the service forbids raises no OSError
            raise UserError(f"{self.root}: cannot be listed: {one_line(error)}") from error
        inside = f"{self._top}/" if self._top else ""  # an archive lists the files of its root without a slash
        return [self._name(path) for path in paths if path.startswith(inside) and not path.endswith("/")]

    def _path(self, name: str) -> str:
        if self._is_web and "?" in name and name.startswith(f"{self.root}/"):  # a URL with a query, see `relative_path`
            return f"{self._top}{quote(name[len(self.root) :], safe=_QUOTED)}"
        if self._is_dotted:
            name = name.removeprefix("./")  # older folders have it in their plan
        # Below `https://` a name begins with its server, which may be [::1]:8080.
        safe = "/:[]" if self.root.endswith("://") else "/"
        return f"{self._top}/{quote(name, safe=safe) if self._is_web else name}"

    def _name(self, path: str) -> str:
        """Return the name of a listed path. fsspec lists links as a page writes them."""
        name = path[len(self._top) :].removeprefix("/")
        if not self._is_web:
            return name
        return unquote(re.sub(r"&#?\w+;", lambda entity: html.unescape(entity[0]), name), errors="surrogateescape")

    def _there(self) -> bool:
        found: bool = self._asked(self._top, lambda: self._fs.exists(self._top), self.root)
        return found

    def _patiently(self, path: str, action: Callable[[], _Answer], shown: str) -> _Answer:
        return patiently_in_turn(self._fs, path, action, shown)

    def _asked(self, path: str, action: Callable[[], _Answer], shown: str) -> _Answer:
        """Call `_patiently`, and turn whatever a service's package raises on a refusal into an `OSError`."""
        try:
            return self._patiently(path, action, shown)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # not all of aiohttp's exceptions are OSErrors
            if code := lasting_code(error):
                raise OSError(code, os.strerror(code)) from error  # of the class that belongs to the code
            if isinstance(error, OSError) and (not isinstance(error, FileNotFoundError) or is_absent(error)):
                raise
            kind = PermissionError if {401, 403} & error_statuses(error) else OSError
            raise kind(reason_of(error)) from error

    def _info(self, name: str) -> dict[str, Any]:
        """Return what the service says of a file, of a version that has not changed."""
        path, shown = self._path(name), shown_file(self.root, name)

        info = self._asked(path, lambda: (self._parts or self._fs).info(path), shown)
        if "::" not in self.root:  # an archive or a cache goes on reading the file that it has opened
            keep_version(self.versions, name, store_version(info), shown)
        return info


def _has_pages(fs: Any) -> bool:  # noqa: ANN401 - fsspec has no types
    """Tell whether a service lists one folder at a time, because fsspec has no way of its own to list all below."""
    kind = type(innermost(fs))
    return getattr(kind, "_find", None) in (None, AsyncFileSystem._find) and kind.find is fsspec.AbstractFileSystem.find


def _is_dotted(fs: Any) -> bool:  # noqa: ANN401
    """Tell whether a service is a tar whose names all begin with `./`, as `tar -czf x.tar.gz .` writes them."""
    return type(fs).protocol == "tar" and bool(fs.ls("", detail=False) == ["."])

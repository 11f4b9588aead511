"""Read and list files through fsspec.

Credentials are left to fsspec: the environment, and the configuration files of the service's own package.
"""

import errno
import glob
import html
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar
from urllib.parse import quote, unquote

import fsspec
from fsspec.utils import glob_translate

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.inputs.pixels import MAX_FILE_BYTES, BadImageError
from sea_pipeline.storage.http_parts import HttpParts, is_http
from sea_pipeline.storage.ranged import ranged_file
from sea_pipeline.storage.remote import opening
from sea_pipeline.storage.retry import PassingError, error_codes, error_statuses, patiently

_Answer = TypeVar("_Answer")
_QUOTED = "!#$%&'()*+,/:;=?@[]~"
"""Characters that stay in a URL which may be quoted already."""


class RemoteFiles:
    """The files below a URL. Names are literal, so characters that an fsspec URL gives a meaning have none in them."""

    readers = 16
    random_access = True

    def __init__(self, url: str) -> None:
        with opening(url):
            self._fs, top = fsspec.core.url_to_fs(url)
        self.root = url if url.endswith("://") else url.rstrip("/")
        self._parts = HttpParts(self._fs) if is_http(url) else None
        # Pages list their own folder as a server writes it, so that spaces and other letters must be quoted here, too.
        self._top = quote(top.rstrip("/"), safe=_QUOTED) if self._parts else top.rstrip("/")

    def read(self, uri: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Files`."""
        if length is not None and length > MAX_FILE_BYTES:
            raise BadImageError("read", "TooLarge", f"expected at most {MAX_FILE_BYTES:,} bytes, found {length:,}")
        try:
            data = self.part(uri, start, MAX_FILE_BYTES + 1 if length is None else length)
        except PassingError:
            raise
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not self._parts and not self._there():
                raise UserError(f"{self.root}: is gone; bring it back and run the same command again") from error
            raise BadImageError("read", type(error).__name__, one_line(error)) from error
        if len(data) > MAX_FILE_BYTES:
            raise BadImageError("read", "TooLarge", f"expected at most {MAX_FILE_BYTES:,} bytes, found more")
        return data

    def where(self, uri: str) -> tuple[str, int]:
        """See `Files`."""
        return "", 0

    def part(self, name: str, start: int, length: int) -> bytes:
        """Read at most `length` bytes of a file from `start` on, or fewer if it ends before."""
        if not length:
            return b""

        def ranged() -> bytes:
            try:
                if self._parts:
                    return self._parts.part(self._path(name), start, length)
                data: bytes = self._fs.cat_file(self._path(name), start=start, end=start + length)
            except Exception as error:
                if 416 in error_statuses(error) or "InvalidRange" in error_codes(error):
                    return b""  # the file ends before `start`
                raise
            return data

        return _asked(ranged, f"{self.root}/{name}")

    def open(self, name: str) -> BinaryIO:
        """See `Files`."""
        size = _asked(lambda: self._fs.info(self._path(name))["size"], f"{self.root}/{name}")
        if size is None:
            raise OSError(errno.EINVAL, "the server does not say how long it is")
        return ranged_file(self.part, name, int(size))

    def names(self, left_out: Counter[str]) -> Iterator[str]:
        """See `Files`."""
        yield from self._found(lambda: self._fs.find(self._top))

    def matching(self, pattern: str) -> list[str]:
        """See `Files`."""
        if self._parts and glob.has_magic(pattern):
            return self._found(lambda: self._matching_on_pages(pattern))
        return self._found(lambda: self._fs.glob(self._path(pattern)))

    def _matching_on_pages(self, pattern: str) -> list[str]:
        """Find the paths that match a pattern in a server's listings. fsspec's `glob` compares with quoted names."""
        folder = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
        depth = None if "**" in pattern else pattern[len(folder) :].lstrip("/").count("/") + 1
        found = self._fs.find(self._path(folder).rstrip("/"), maxdepth=depth)
        wanted = re.compile(glob_translate(pattern))
        return [path for path in found if wanted.match(self._name(path))]

    def _found(self, listing: Callable[[], list[str]]) -> list[str]:
        self._fs.invalidate_cache()
        try:
            paths = patiently(listing, self.root)
        except FileNotFoundError:
            return []
        except UserError:
            raise
        except Exception as error:  # a name that the service forbids raises no OSError
            raise UserError(f"{self.root}: cannot be listed: {one_line(error)}") from error
        return [self._name(path) for path in paths if path.startswith(f"{self._top}/") and not path.endswith("/")]

    def _path(self, name: str) -> str:
        return f"{self._top}/{quote(name) if self._parts else name}"

    def _name(self, path: str) -> str:
        """Return the name of a listed path. fsspec lists links as a page writes them."""
        name = path[len(self._top) + 1 :]
        if not self._parts:
            return name
        return unquote(re.sub(r"&#?\w+;", lambda entity: html.unescape(entity[0]), name), errors="surrogateescape")

    def _there(self) -> bool:
        there: bool = _asked(lambda: self._fs.exists(self._top), self.root)
        return there


def _asked(action: Callable[[], _Answer], shown: str) -> _Answer:
    """Call `patiently`, and turn whatever a service's package raises on a refusal into an `OSError`."""
    try:
        return patiently(action, shown)
    except (OSError, UserError, MemoryError):
        raise
    except Exception as error:  # not all of aiohttp's exceptions are OSErrors
        kind = PermissionError if {401, 403} & error_statuses(error) else OSError
        raise kind(one_line(error)) from error

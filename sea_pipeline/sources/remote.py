"""Files through fsspec, and what of a network's faults may pass.

Credentials are fsspec's business: the environment, and the configuration files of the service's own package.
"""

import errno
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar
from urllib.parse import quote

import fsspec

from sea_pipeline.errors import UserError
from sea_pipeline.pixels import MAX_FILE_BYTES, BadImageError
from sea_pipeline.sources.files import ranged_file

_Result = TypeVar("_Result")

WAITS = (0.2, 1.0, 4.0)
"""Seconds between attempts, each times 0.5 to 1.5: many workers must not come back at the same moment."""
_EXTRAS = {"s3": "s3", "s3a": "s3"}
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_NETWORK = {"aiohttp", "aiobotocore", "botocore", "http", "httpcore", "httpx", "requests", "ssl", "urllib3"}
_CREDENTIALS = {
    "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "NoCredentialsError",
    "PartialCredentialsError", "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip


class PassingError(OSError):
    """The network or a service failed repeatedly; not the image's fault."""


def patiently(action: Callable[[], _Result], shown: str) -> _Result:
    """What `action` gives, tried again a few times where the network or the service fails.

    Raises:
        PassingError: it failed every time.
        UserError: the service refuses the credentials.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except Exception as error:
            if refused := _CREDENTIALS & {code for cause in _causes(error) for code in _codes(cause)}:
                raise UserError(
                    f"{shown}: cannot be read: the credentials are missing or refused ({min(refused)}); set them as "
                    "the service's own tools do, and run the same command again"
                ) from error
            if not may_pass(error):
                raise
            if wait is None:
                raise PassingError(errno.EIO, f"{shown}: {type(error).__name__}: {_line(error)}") from error
            time.sleep(wait * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def may_pass(error: BaseException) -> bool:
    """Whether an error is the network's or the service's: timeouts, resets, throttling, status 5xx."""
    statuses = [status for cause in _causes(error) if (status := _status(cause))]
    if any(status in (408, 425, 429) or status >= 500 for status in statuses):
        return True  # some packages say FileNotFoundError for these, too
    if any(400 <= status < 500 for status in statuses) or isinstance(error, _LASTING):
        return False
    of_the_network = type(error).__module__.partition(".")[0] in _NETWORK
    return isinstance(error, OSError | EOFError) or (of_the_network and "Validation" not in type(error).__name__)


class RemoteFiles:
    """The files below a URL. Names are literal: what is special in an fsspec URL is not so in them."""

    readers = 16
    random_access = True

    def __init__(self, url: str) -> None:
        protocol = re.split("://|::", url)[0].lower()
        if re.match(r"[^/]*://[^/@]*:[^/@]*@", url):
            raise UserError(f"{protocol}://…@…: expected no password in a URL; set it as the service's own tools do")
        try:
            self._fs, top = fsspec.core.url_to_fs(url)
        except ImportError as error:
            install = f"pip install 'sea-pipeline[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else _line(error)
            raise UserError(f"{url}: {protocol}:// needs a package that is not installed: {install}") from error
        except ValueError as error:
            raise UserError(f"{url}: expected a URL that fsspec reads; {_line(error)}") from error
        self.root = url if url.endswith("://") else url.rstrip("/")
        self._top = top.rstrip("/")
        self._is_http = protocol in ("http", "https")

    def read(self, uri: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Files`."""
        try:
            data = self.part(uri, start, MAX_FILE_BYTES + 1 if length is None else length)
        except PassingError:
            raise
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not self._is_http and not self._there():
                raise UserError(f"{self.root}: is gone; bring it back and run the same command again") from error
            raise BadImageError("read", type(error).__name__, _line(error)) from error
        if len(data) > MAX_FILE_BYTES:
            raise BadImageError("read", "TooLarge", f"expected at most {MAX_FILE_BYTES:,} bytes, found more")
        return data

    def part(self, name: str, start: int, length: int) -> bytes:
        """At most `length` bytes of a file from `start` on; fewer where it ends."""
        if not length:
            return b""

        def ranged() -> bytes:
            try:
                data: bytes = self._fs.cat_file(self._path(name), start=start, end=start + length)
            except Exception as error:
                if any(_status(cause) == 416 or "InvalidRange" in _codes(cause) for cause in _causes(error)):
                    return b""  # the file ends before `start`
                raise
            return data

        return patiently(ranged, f"{self.root}/{name}")

    def open(self, name: str) -> BinaryIO:
        """See `Files`."""
        size = patiently(lambda: self._fs.info(self._path(name))["size"], f"{self.root}/{name}")
        if size is None:
            raise OSError(errno.EINVAL, "the server does not say how long it is")
        return ranged_file(self.part, name, int(size))

    def names(self, left_out: Counter[str]) -> Iterator[str]:
        """See `Files`."""
        yield from self._found(lambda: self._fs.find(self._top))

    def matching(self, pattern: str) -> list[str]:
        """See `Files`."""
        return self._found(lambda: self._fs.glob(self._path(pattern)))

    def _found(self, listing: Callable[[], list[str]]) -> list[str]:
        self._fs.invalidate_cache()
        try:
            paths = patiently(listing, self.root)
        except FileNotFoundError:
            return []
        except UserError:
            raise
        except Exception as error:  # a name that the service forbids is no OSError
            raise UserError(f"{self.root}: cannot be listed: {_line(error)}") from error
        top = f"{self._top}/"
        return [path[len(top) :] for path in paths if path.startswith(top) and not path.endswith("/")]

    def _path(self, name: str) -> str:
        return f"{self._top}/{quote(name) if self._is_http else name}"

    def _there(self) -> bool:
        there: bool = patiently(lambda: self._fs.exists(self._top), self.root)
        return there


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    while id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error


def _codes(error: BaseException) -> list[str]:
    """How an error names itself: its class, and what an S3 service calls it."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return [type(error).__name__, *([str(code)] if code else [])]


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error is about."""
    response = getattr(error, "response", None)
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    for holder in (error, response):
        found = found or getattr(holder, "status", None) or getattr(holder, "status_code", None)
    return found if isinstance(found, int) else None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

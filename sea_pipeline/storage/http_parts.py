"""Read parts of files from HTTP servers, also from those that send whole files alone."""

import re
import threading
from collections import OrderedDict
from typing import Any

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.clients import innermost
from sea_pipeline.storage.retry import error_statuses

MOST_WHOLE = 1 << 26
"""The most bytes of a file that is fetched whole for its parts."""
_KEPT = 2
_WEB = re.compile(r"(?:(?:simplecache|filecache|blockcache|cached)::)*https?://", re.IGNORECASE)


def is_http(url: str) -> bool:
    """Tell whether a URL is of a web server, also behind a cache of fsspec."""
    return _WEB.match(url) is not None


def http_parts(fs: Any, url: str) -> "HttpParts | None":  # noqa: ANN401 - fsspec has no types
    """Return what reads parts of a web server's files; None for other stores, and behind a cache."""
    return HttpParts(fs) if is_http(url) and innermost(fs) is fs else None


class HttpParts:
    """Reads parts of files. Several threads can use it at once.

    A server may ignore `Range` and send the whole file each time. A small file is then fetched once, and the two that
    were used last are kept, because threads pass from one to the next.

    Args:
        fs: fsspec's file system of HTTP.
    """

    def __init__(self, fs: Any) -> None:  # noqa: ANN401 - fsspec has no types
        self._fs = fs
        self._lock = threading.Lock()
        self._sends_parts = True
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def part(self, url: str, start: int, length: int) -> bytes:
        """Read at most `length` bytes of a file from `start` on, or fewer if it ends before.

        Raises:
            UserError: the server sends whole files alone, and this one is larger than `MOST_WHOLE`.
            Exception: whatever aiohttp raises on a fault of the server or the network.
        """
        if start == 0 or self._sends_parts:
            data = self._fetch(url, start, length)
            if data is not None:
                return data
            self._sends_parts = False
        with self._lock:
            if url not in self._kept:
                self._kept[url] = self._whole(url)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(url)
            return self._kept[url][start : start + length]

    def info(self, url: str) -> dict[str, Any]:
        """Return what the server says of a file; its `size` is None if the server does not say it.

        Raises:
            FileNotFoundError: the server does not give it; the cause has the status.
        """
        # A query is sent as it is written, as in `_fetched`.
        fs = type(self._fs)(**{**self._fs.storage_options, "encoded": True}) if "?" in url else self._fs
        info: dict[str, Any] = fs.info(url)
        return info

    def _whole(self, url: str) -> bytes:
        size = self.info(url)["size"]
        data = None if size and size > MOST_WHOLE else self._fetch(url, 0, MOST_WHOLE + 1)
        if data is None or len(data) > MOST_WHOLE:
            raise UserError(
                f"{url.partition('?')[0]}: expected a server that sends parts of files; this one sends the whole file "
                f"for each part, and it has {f'{size:,}' if size else f'more than {MOST_WHOLE:,}'} bytes; download the "
                "file, or use another server"
            )
        return data

    def _fetch(self, url: str, start: int, length: int) -> bytes | None:
        from fsspec.asyn import sync

        data: bytes | None = sync(self._fs.loop, _fetched, self._fs, url, start, length)
        return data


async def _fetched(fs: Any, url: str, start: int, length: int) -> bytes | None:  # noqa: ANN401
    """Fetch a part of a file, or return None if the server sends another part.

    fsspec's own `cat_file` takes a whole file for the part that was asked for. A server may send less of a part than it
    was asked for, and is then asked for the rest.
    """
    data = bytearray()
    while True:
        try:
            piece, total = await _piece(fs, url, start + len(data), length - len(data))
        except Exception as error:
            if data and 416 in error_statuses(error):  # the file ended; the server has not said where
                return bytes(data)
            raise
        if piece is None:
            return None
        data += piece
        if len(data) == length or (total is not None and start + len(data) >= total):
            return bytes(data)
        if not piece:
            if total is None:
                return bytes(data)
            raise ConnectionError(f"the server sent {len(data):,} bytes of {min(length, total - start):,}")


async def _piece(fs: Any, url: str, start: int, length: int) -> tuple[bytes | None, int | None]:  # noqa: ANN401
    """Fetch a part of a file and where the file ends, or None if the server says that it does not know.

    The part is None if the server sends another one.
    """
    session = await fs.set_session()
    headers = {
        **fs.kwargs.get("headers", {}),
        "Range": f"bytes={start}-{start + length - 1}",
        "Accept-Encoding": "identity",
    }
    address = fs.encode_url(url)
    if "?" in url:  # aiohttp would write a query otherwise, and so break its signature
        address = type(address)(url, encoded=True)
    async with session.get(address, **{**fs.kwargs, "headers": headers}) as answer:
        if answer.status == 404:
            raise FileNotFoundError(url)
        answer.raise_for_status()
        found = answer.headers.get("Content-Range", f"bytes {start}-") if answer.status == 206 else "bytes 0-"
        if not found.startswith(f"bytes {start}-"):
            return None, None
        data = bytearray()
        while len(data) < length and (chunk := await answer.content.read(length - len(data))):
            data += chunk
        total = found.rpartition("/")[2]
        if total == "*":
            return bytes(data), None
        return bytes(data), int(total) if total.isdecimal() else 0

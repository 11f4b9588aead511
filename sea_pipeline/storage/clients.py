"""Make up for what fsspec's clients lack."""

import ftplib
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

from fsspec import AbstractFileSystem


def innermost(fs: Any) -> Any:  # noqa: ANN401 - fsspec has no types
    """Return the client of the store that caches read from, or `fs` itself if it is no cache."""
    while isinstance(inner := getattr(fs, "fs", None), AbstractFileSystem):
        fs = inner
    return fs


def cat_part(fs: Any, path: str, start: int, end: int, **options: object) -> bytes:  # noqa: ANN401
    """Return the bytes of a file from `start` to before `end`, or fewer if it ends before."""
    # sshfs gives the whole file for any part, except through `open`.
    cat = partial(AbstractFileSystem.cat_file, fs) if type(fs).__module__.startswith("sshfs.") else fs.cat_file
    data: bytes = cat(path, start=start, end=end, **options)
    return data


def listed(fs: Any, folder: str) -> list[dict[str, Any]]:  # noqa: ANN401
    """List a folder, or raise what `refuse_lost_listing` raises."""
    found: list[dict[str, Any]] = fs.ls(folder, detail=True)
    if not found:
        refuse_lost_listing(fs, folder)
    return found


def refuse_lost_listing(fs: Any, folder: str) -> None:  # noqa: ANN401
    """Raise what may pass if FTP lists a folder that fsspec takes for empty, because it could not list it before."""
    if ftp := _ftp(fs):
        with suppress(ftplib.error_perm):  # raises what may pass; a server may lack this command
            if any(about["type"] in ("file", "dir") for _, about in ftp.mlsd(folder)):
                raise ConnectionError("the server did not list the folder")


def refuse_lost_file(fs: Any, path: str) -> None:  # noqa: ANN401
    """Raise what may pass if FTP lists a file that fsspec takes for absent, because it could not list it before."""
    folder = path.rpartition("/")[0]
    if _ftp(fs) and any(entry["name"] == path for entry in listed(fs, folder)):
        raise ConnectionError("the server did not list the folder")


def _ftp(fs: Any) -> ftplib.FTP | None:  # noqa: ANN401
    found = getattr(innermost(fs), "ftp", None)
    return found if isinstance(found, ftplib.FTP) else None


def quote_names(fs: Any) -> None:  # noqa: ANN401
    """Let WebDAV's client quote names. webdav4 leaves `#`, `?` and `%20` as they are."""
    client = innermost(fs)
    if type(client).__module__.startswith("webdav4.") and "join_url" not in vars(client.client):
        plain = client.client.join_url
        client.client.join_url = lambda path, **more: plain(quote(path), **more)

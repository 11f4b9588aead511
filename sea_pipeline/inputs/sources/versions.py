"""Tell whether a file is still the one that was listed, because the places of rows and members hold for that one."""

from collections.abc import Iterable, Mapping
from os import stat_result
from pathlib import Path
from typing import Any

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.samples import Version
from sea_pipeline.inputs.sources.base import is_image_name

Versions = dict[str, Version]
"""By the name of a file."""
_MARKS = ("Last-Modified", "ETag", "etag", "mtime")
"""What stores say of a file, the best first. The servers of one web address may send different ETags for one file."""


def local_version(status: stat_result) -> Version:
    """Return the version of a file of this machine."""
    return Version(status.st_size, status.st_mtime_ns)


def local_versions(files: Iterable[str]) -> Versions:
    """Return the versions of those paths that are files of this machine, except files of single images."""
    return {
        file: local_version(Path(file).stat()) for file in files if Path(file).is_file() and not is_image_name(file)
    }


def store_version(info: Mapping[str, Any]) -> Version:
    """Return the version of a file, from what fsspec says of it."""
    mark = next((info[key] for key in _MARKS if info.get(key)), None)
    return Version(info.get("size"), None if mark is None else str(mark).strip('"'))


def on_another_host(versions: Mapping[str, Version]) -> Versions:
    """Return the versions that hold on another host, where a copy of a file may have another time."""
    return {name: Version(size, None if isinstance(mark, int) else mark) for name, (size, mark) in versions.items()}


def is_of_this_host(versions: Mapping[str, Version]) -> bool:
    """Tell whether versions hold times of this host's files, which `on_another_host` leaves out."""
    return any(isinstance(known.mark, int) for known in versions.values())


def keep_version(versions: Versions, name: str, found: Version, shown: str) -> None:
    """Remember a file's version, or compare it with the remembered one.

    Raises:
        UserError: it has changed.
    """
    known = versions.setdefault(name, found)
    if any(None not in pair and pair[0] != pair[1] for pair in zip(known, found, strict=True)):
        raise changed_error(shown)
    if known.mark is None:
        versions[name] = found


def changed_error(shown: str) -> UserError:
    """Make the error of a file that is another one than was listed."""
    return UserError(
        f"{shown}: has changed since this run listed it; put it back as it was and run the same command again "
        "(finished shards are kept), or choose another --out"
    )

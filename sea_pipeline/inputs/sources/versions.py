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
_TIME = "mtime_ns"
_MARKS = ("Last-Modified", "ETag", "etag", "mtime")
"""What stores say of a file."""


class ChangedError(UserError):
    """A file that is another one than was listed."""


def local_version(status: stat_result) -> Version:
    """Return the version of a file of this machine."""
    return Version(status.st_size, {_TIME: status.st_mtime_ns})


def local_versions(files: Iterable[str]) -> Versions:
    """Return the versions of those paths that are files of this machine, except files of single images."""
    return {
        file: local_version(Path(file).stat()) for file in files if not is_image_name(file) and Path(file).is_file()
    }


def store_version(info: Mapping[str, Any]) -> Version:
    """Return the version of a file, from what fsspec says of it."""
    return Version(info.get("size"), {name: str(info[name]).strip('"') for name in _MARKS if info.get(name)})


def on_another_host(versions: Mapping[str, Version]) -> Versions:
    """Return the versions that hold on another host, where a copy of a file may have another time."""
    return {
        name: Version(size, {key: mark for key, mark in marks.items() if key != _TIME})
        for name, (size, marks) in versions.items()
    }


def is_of_this_host(versions: Mapping[str, Version]) -> bool:
    """Tell whether versions hold times of this host's files, which `on_another_host` leaves out."""
    return any(_TIME in marks for _, marks in versions.values())


def keep_version(versions: Versions, name: str, found: Version, shown: str) -> None:
    """Remember a file's version, or compare it with the remembered one.

    One mark that agrees is enough. Servers behind one address may send different ETags or dates for one file.

    Raises:
        ChangedError: it has changed.
    """
    known = versions.setdefault(name, found)
    both = known.marks.keys() & found.marks.keys()
    sizes = {known.size, found.size} - {None}
    if len(sizes) > 1 or (both and all(known.marks[mark] != found.marks[mark] for mark in both)):
        raise changed_error(shown)
    if not known.marks:
        versions[name] = found


def changed_error(shown: str) -> ChangedError:
    """Make the error of a file that is another one than was listed."""
    return ChangedError(
        f"{shown}: has changed since this run listed it; put it back as it was and run the same command again "
        "(finished shards are kept), or choose another --out"
    )

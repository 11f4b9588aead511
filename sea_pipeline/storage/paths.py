"""Files and folders of this machine or of a store elsewhere, and what lies in them."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import platformdirs

from sea_pipeline.storage.leftovers import is_leftover

if TYPE_CHECKING:
    from sea_pipeline.storage.remote import RemotePath

    Place = Path | RemotePath
else:
    Place = Path
"""A file or a folder, of this machine or of a store; `place` makes one from what a user gives."""

_URL = re.compile(r"[A-Za-z][\w+.-]*(::[A-Za-z][\w+.-]*)*://")
_REQUESTS = 16
"""At once, where each one waits for a network."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def is_url(text: str) -> bool:
    """Whether fsspec is asked for, and not a file of this machine: `PROTOCOL://…`, or `CACHE::PROTOCOL://…`."""
    return _URL.match(text) is not None


def place(text: str | Place) -> Place:
    """What a user calls a file or a folder: a path of this machine, or the URL of one that fsspec can write.

    Raises:
        UserError: the URL's protocol is unknown, or needs a package that is not installed.
    """
    if not isinstance(text, str):
        return text
    for local in ("file://", "local://"):
        text = text.removeprefix(local)
    if not is_url(text):
        return Path(text)
    from sea_pipeline.storage.remote import remote_path

    return remote_path(text)


def cache_folder() -> Path:
    """Where computed files are kept between runs: `$SEA_PIPELINE_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("SEA_PIPELINE_CACHE") or platformdirs.user_cache_dir("sea-pipeline"))


def data_folder(name: str) -> Path:
    """A folder of files that come with this package: inside the wheel, or at the top of a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "data" / name
    return inside if inside.is_dir() else package.parent / name


def entries(folder: Place) -> list[Place]:
    """What lies in a folder, by name, but for what systems leave behind; nothing if it is absent."""
    with suppress(FileNotFoundError):
        return sorted((one for one in folder.iterdir() if not is_leftover(one.name)), key=lambda entry: entry.name)
    return []


def below(root: Place, path: Place) -> str:
    """The way from a folder to a path inside it, with slashes."""
    return path.relative_to(root).as_posix()  # type: ignore[arg-type]  # both of this machine, or both of one store


def spread(root: Place, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """The results of `work` in the order of `items`; several at once where `root` is in a store elsewhere."""
    if isinstance(root, Path):
        yield from map(work, items)
        return
    with ThreadPoolExecutor(_REQUESTS) as pool:
        yield from pool.map(work, items)

"""Name files and folders of this machine or of a store elsewhere, and list them."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import platformdirs

from sea_pipeline.core.errors import UserError
from sea_pipeline.storage.leftovers import is_leftover
from sea_pipeline.storage.retry import looking

if TYPE_CHECKING:
    from sea_pipeline.storage.remote import RemotePath

    Place = Path | RemotePath
else:
    Place = Path
"""A file or a folder, on this machine or in a store; `place` makes one from what a user gives."""

_URL = re.compile(r"[A-Za-z][\w+.-]*(::[A-Za-z][\w+.-]*)*://")
_REQUESTS = 16
"""How many requests to a store are under way at once; each mostly waits for the network."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def is_url(text: str) -> bool:
    """Tell whether a text is a URL for fsspec, `PROTOCOL://…` or `CACHE::PROTOCOL://…`, and no path of this machine."""
    return _URL.match(text) is not None


def place(text: str | Place) -> Place:
    """Convert a user's name of a file or a folder to a path.

    A URL becomes a path of a store that fsspec can write, anything else a path of this machine.

    Raises:
        UserError: the URL's protocol is unknown, or needs a package that is not installed; or nothing is behind it.
    """
    if not isinstance(text, str):
        return text
    text = without_local(text)
    if not is_url(text):
        return Path(text)
    from sea_pipeline.storage.remote import remote_path

    return remote_path(text)


def without_local(text: str) -> str:
    """Return a name without `file://` or `local://`, which a path of this machine may have in front.

    Raises:
        UserError: nothing is behind it. An empty path would mean the working folder.
    """
    for local in ("file://", "local://"):
        if text == local:
            raise UserError(f"{text}: expected a path behind it; found none")
        text = text.removeprefix(local)
    return text


def cache_folder() -> Path:
    """Return the folder that keeps computed files between runs, `$SEA_PIPELINE_CACHE` or the user's cache folder.

    Raises:
        UserError: neither exists, because the user has no home folder.
    """
    if given := os.environ.get("SEA_PIPELINE_CACHE"):
        return Path(given)
    with suppress(RuntimeError):
        found = platformdirs.user_cache_dir("sea-pipeline")
        if not found.startswith("~"):  # as older versions of platformdirs leave it
            return Path(found)
    raise UserError(
        "SEA_PIPELINE_CACHE: expected a folder for computed files; found none, and no home folder of this user; set it "
        "to a folder that can be written"
    )


def expanded(path: str) -> Path:
    """Return a path with `~` in front replaced by the home folder, or as it is if there is no such user or folder."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises then


def data_folder(name: str) -> Path:
    """Return a folder of files that come with this package, inside the wheel or at the top of a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "data" / name
    return inside if inside.is_dir() else package.parent / name


def followed(path: Path) -> Path:
    """Return what a link leads to, which need not exist, or a path that is no link as it is."""
    return _real(path) if path.is_symlink() else path


def lies_in(path: str | Path, root: str | Path) -> bool:
    """Tell whether a path of this machine is a folder or below it, with all links followed."""
    return _real(path).is_relative_to(_real(root))


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve fails if a link leads to itself


def entries(folder: Place) -> list[Place]:
    """List the entries of a folder by name, without leftovers.

    An absent folder has none.
    """
    with suppress(FileNotFoundError), looking(folder):
        return sorted((one for one in folder.iterdir() if not is_leftover(one.name)), key=lambda entry: entry.name)
    return []


def below(root: Place, path: Place) -> str:
    """Return the path from a folder to something inside it, with slashes."""
    return path.relative_to(root).as_posix()  # type: ignore[arg-type]  # both of this machine, or both of one store


def map_over_store(root: Place, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield the results of `work` in the order of `items`.

    If `root` is in a store elsewhere, several are computed at once.
    """
    if isinstance(root, Path):
        yield from map(work, items)
        return
    from sea_pipeline.core.parallel import ThreadPool, prefetched_map  # here because numpy takes a while

    with ThreadPool(_REQUESTS) as pool:
        yield from prefetched_map(pool, work, items)

"""List the images in tars (webdataset) by their members' headers, and read them by offset and length."""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.parallel import ThreadPool, prefetched_map
from sea_pipeline.inputs.pixels import BadImageError
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.inputs.sources.base import (
    FoundImages,
    escaped,
    is_image_name,
    left_as,
    named,
    shown_file,
    without_query,
)
from sea_pipeline.inputs.sources.files import Files, reading
from sea_pipeline.inputs.sources.tar_members import Members, folders, followed, through_folders
from sea_pipeline.storage.leftovers import LEFTOVERS, is_leftover

PREFIX = "tar:"
_REPLACED = "members that a later one of the same tar replaces"
_MARKERS = "blocks of zeros inside a tar, which was read on behind them"
_DUMPED_FOLDER = b"D"
"""The type of a folder in an incremental tar of GNU; its data are the names in it."""


class TarSource:
    """Reads members of tars; a `uri` is `TAR#OFFSET+LENGTH`, in bytes."""

    random_access = True

    def __init__(self, files: Files) -> None:
        self._files = files
        self.readers = files.readers

    def read(self, uri: str) -> bytes:
        """See `Source`."""
        name, start, length = _member(uri)
        data = self._files.read(name, start, length)
        if len(data) < length:
            message = f"{name} ends after {len(data):,} of the image's {length:,} bytes; it has been cut off"
            raise BadImageError("read", "Truncated", message)
        return data

    def where(self, uri: str) -> tuple[str, int]:
        """See `Source`."""
        return _member(uri)[:2]

    def refuse_changed(self, uris: Sequence[str]) -> None:
        """See `Source`."""
        self._files.refuse_changed([_member(uri)[0] for uri in uris])


def _member(uri: str) -> tuple[str, int, int]:
    name, _, location = uri.rpartition("#")
    start, length = map(int, location.split("+"))
    return name, start, length


class _Location(NamedTuple):
    """The position of a member's bytes, or why it has none."""

    uri: str
    problem: str | None = None


class _Tar(NamedTuple):
    name: str
    images: dict[str, _Location]
    """By the member's name, as the tar writes it."""
    left_out: Counter[str]
    damage: str | None


def list_tars(files: Files, names: Sequence[str], left_out: Counter[str]) -> FoundImages:
    """List the images of tars by the names of their members, with the tar's name in front if two tars share a name.

    A tar is read to the end of its file, whatever lies between its members. Damage of a tar is a sample of its own,
    with a problem. Of two members of one name the later one counts, as in a folder that the tar is unpacked into.

    Raises:
        UserError: there is only one tar, and it is none.
    """
    with ThreadPool(files.readers) as pool:
        tars = list(prefetched_map(pool, lambda name: _listed(files, name), names))
    if len(tars) == 1 and tars[0].damage and not tars[0].images:
        raise UserError(
            f"{shown_file(files.root, names[0])}: expected a .tar with images, not compressed; {tars[0].damage}"
        )
    for tar in tars:
        left_out.update(tar.left_out)
    shared = sum(len(tar.images) for tar in tars) > len({member for tar in tars for member in tar.images})
    samples = [
        _sample(f"{tar.name.removesuffix('.tar')}/{member}" if shared else member, location)
        for tar in tars
        for member, location in tar.images.items()
    ]
    samples += [Sample(without_query(tar.name), tar.name, tar.damage) for tar in tars if tar.damage]
    ids = "members' names, their tar in front" if shared else "members' names"
    return FoundImages(PREFIX + files.root, samples, ids, versions=files.versions)


def _sample(image_id: str, location: _Location) -> Sample:
    if location.problem is None:
        return named(image_id, location.uri, "member")
    return Sample(escaped(image_id), escaped(location.uri), escaped(location.problem))


def _listed(files: Files, name: str) -> _Tar:
    contents = _Contents(name)
    before = 0
    with reading(shown_file(files.root, name)), files.open(name) as file:
        members = Members(file)
        for member in members:
            is_whole = not members.damage
            contents.add(member)
            before = contents.named if is_whole else before
    images = dict(contents.images())
    left_out = contents.left_out
    left_out[_REPLACED] += contents.named - len(contents.shown)
    left_out[_MARKERS] += members.markers
    damage = None
    if members.damage:
        more = f", and at {len(members.damage) - 1:,} more places" if len(members.damage) > 1 else ""
        whole = f"damaged behind its first {before:,} images: " if contents.named or any(left_out.values()) else ""
        damage = f"{whole}{members.damage[0]}{more}"
    return _Tar(name, images, left_out, damage)


class _Contents:
    """The members of a tar by name, as they would lie in a folder that it is unpacked into."""

    def __init__(self, tar: str) -> None:
        self.left_out: Counter[str] = Counter()
        self.named = 0
        """The number of members with an image's suffix."""
        self.shown: dict[str, str] = {}
        """The names of those members, by normalised path."""
        self._tar = tar
        self._locations: dict[str, _Location] = {}
        self._links: dict[str, str] = {}

    def add(self, member: tarfile.TarInfo) -> None:
        """Add one more member, in the tar's order."""
        path, target = _path(member.name), _path(member.linkname)
        if is_leftover(path):
            self.left_out[LEFTOVERS] += not member.isdir()
            return
        if member.isdir() or member.type == _DUMPED_FOLDER:
            return
        self._locations.pop(path, None)
        self._links.pop(path, None)
        if member.issym() and member.linkname:
            self._links[path] = member.linkname
        elif member.islnk() and target in self._links:
            self._links[path] = self._links[target]
        elif member.islnk():
            self._locations[path] = self._locations.get(target) or _astray(path, member.linkname, "before it ")
        else:
            self._locations[path] = self._location(path, member)
        if is_image_name(path):
            self.shown[path] = member.name.removeprefix("./")
            self.named += 1
        elif path not in self._links:
            self.left_out[left_as(path)] += 1

    def images(self) -> Iterator[tuple[str, _Location]]:
        """Yield the images by name, after all members were added."""
        tree = folders((*self._locations, *self._links)) if self._links else {}
        real = {path: followed(path, self._links) for path in self._links}
        files = [path for path in self._links if real[path] not in tree]
        self.left_out.update(left_as(path) for path in files if not is_image_name(path))
        for path, name in self.shown.items():
            if real.get(path) not in tree:
                yield name, self._found(path)
        for name, path in through_folders(tree, self._links, self.left_out):
            if is_image_name(name):
                yield name, self._found(path)
            else:
                self.left_out[left_as(name)] += 1

    def _found(self, path: str) -> _Location:
        if path not in self._links:
            return self._locations[path]
        return self._locations.get(followed(path, self._links) or "") or _astray(path, self._links[path])

    def _location(self, path: str, member: tarfile.TarInfo) -> _Location:
        if member.issparse():
            return _Location(path, "its holes are left out, which is not read; pack it again without --sparse")
        if not member.isreg():
            return _Location(path, f"expected a file or a link; found a member of the type {member.type!r}")
        return _Location(f"{self._tar}#{member.offset_data}+{member.size}")


def _path(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _astray(path: str, target: str, where: str = "") -> _Location:
    return _Location(path, f"is a link to {escaped(target)!r}, which is not {where}in the tar")

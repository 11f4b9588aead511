"""Images in tars (webdataset): listed once by the members' headers, read by their place and length."""

import tarfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

from sea_pipeline.errors import UserError
from sea_pipeline.pixels import BadImageError
from sea_pipeline.samples import Sample
from sea_pipeline.sources.base import OTHER_FILES, Found, is_image_name, named
from sea_pipeline.sources.files import Files, reading

PREFIX = "tar:"


class TarSource:
    """Reads members; a `uri` is `TAR#OFFSET+LENGTH`, in bytes."""

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


def _member(uri: str) -> tuple[str, int, int]:
    name, _, place = uri.rpartition("#")
    start, length = map(int, place.split("+"))
    return name, start, length


class _Tar(NamedTuple):
    name: str
    members: dict[str, str]
    """Images by the member's name, and their `uri`s. Of two members of one name the later counts, as in any tar."""
    others: int
    repeated: int
    damage: str | None


def list_tars(files: Files, names: Sequence[str], left_out: Counter[str]) -> Found:
    """The images of tars. Their ids are the members' names, with the tar's name in front where two tars share one.

    A damaged tar costs the members from the damage on, and is itself among the samples, with its problem.

    Raises:
        UserError: the only tar is none.
    """
    with ThreadPoolExecutor(files.readers) as pool:
        tars = list(pool.map(lambda name: _listed(files, name), names))
    if len(tars) == 1 and tars[0].damage and not tars[0].members:
        raise UserError(f"{files.root}/{names[0]}: expected a .tar with images, not compressed; {tars[0].damage}")
    left_out[OTHER_FILES] += sum(tar.others for tar in tars)
    left_out["members that a later one of the same tar replaces"] += sum(tar.repeated for tar in tars)
    shared = sum(len(tar.members) for tar in tars) > len({member for tar in tars for member in tar.members})
    samples = [
        named(f"{tar.name.removesuffix('.tar')}/{member}" if shared else member, uri, "member")
        for tar in tars
        for member, uri in tar.members.items()
    ]
    samples += [Sample(tar.name, tar.name, tar.damage) for tar in tars if tar.damage]
    return Found(PREFIX + files.root, samples, "members' names, their tar in front" if shared else "members' names")


def _listed(files: Files, name: str) -> _Tar:
    members: dict[str, str] = {}
    everything: dict[str, str] = {}
    images = others = 0
    damage = None
    with reading(f"{files.root}/{name}"), files.open(name) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                for member in tar:
                    if member.isreg() and not member.issparse():
                        uri = f"{name}#{member.offset_data}+{member.size}"
                    else:
                        uri = everything.get(member.linkname, "") if member.islnk() else ""
                    everything[member.name] = uri
                    if uri and is_image_name(member.name):
                        members[member.name.removeprefix("./")] = uri
                        images += 1
                    else:
                        others += not member.isdir()
                damage = _damage_at(file, tar.offset)
        except tarfile.TarError as error:
            damage = str(error)
    if damage:
        damage = f"damaged behind its first {images:,} images: {damage}"
    return _Tar(name, members, others, images - len(members), damage)


def _damage_at(file: BinaryIO, end: int) -> str | None:
    """What is wrong with the place where the headers end; `tarfile` takes anything but a header for the end."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        return "it has no end marker, so it may have been cut off"
    return f"no header at byte {end:,}" if block.strip(b"\0") else None

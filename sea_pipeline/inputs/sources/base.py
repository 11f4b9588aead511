"""Define what every source of images is, and what names and ids must be."""

import posixpath
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.samples import Sample, Version
from sea_pipeline.inputs.sources.values import MISSING, NOT_A_NUMBER, NoId
from sea_pipeline.storage.leftovers import LEFTOVERS, is_leftover
from sea_pipeline.storage.paths import is_url

IMAGE_SUFFIXES = frozenset(
    {".apng", ".avif", ".avifs", ".bmp", ".dds", ".dib", ".gif", ".heic", ".heif", ".hif", ".icb", ".icns", ".ico"}
    | {".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".jxl", ".mpo", ".pbm", ".pcx"}
    | {".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp"}
)
"""Suffixes of files that a listing takes for images; reading them shows what they really are."""
_UNREAD_SUFFIXES = frozenset(
    {".ai", ".eps", ".psb", ".psd", ".svg", ".svgz", ".xcf"}
    | {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f"}
)
"""Suffixes of drawings and of cameras' raw files. These lie beside photos, so that a listing leaves them out."""
ID_COLUMNS = ("image_id", "id", "key", "__key__", "file_name")
"""Columns that may be ids; the first one whose values are all present and differ is taken."""
PATH_COLUMNS = ("path", "image", "file_name", "uri")
"""Columns that hold a path, the best first."""
ROW_NUMBERS = "row numbers"
NO_IMAGE = "rows without an image"
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "bytes")
"""Columns whose bytes are images, the best first."""


class Source(Protocol):
    """Reads images; `open_source` makes one from a location. Several threads can use it at once."""

    readers: int
    """How many concurrent reads keep it busy."""
    random_access: bool
    """Whether reading any image takes as long as reading the next one."""

    def read(self, uri: str) -> bytes:
        """Read the bytes of one image, as its file or its row holds them.

        Raises:
            BadImageError: this image is not there, or cannot be read (stage `read`).
            UserError: the whole source is gone, or refuses the credentials.
            OSError: the machine or the network is at fault; it may pass.
        """
        ...

    def where(self, uri: str) -> tuple[str, int]:
        """Return a sort key for the position of an image's bytes.

        Images are read fastest in the order of their keys. Equal keys may be read in any order.
        """
        ...

    def refuse_changed(self, uris: Sequence[str]) -> None:
        """Compare the files that some images were read from with the listed ones.

        Raises:
            UserError: a tar or a table has changed, so that these may have been other images.
        """
        ...


class FoundImages(NamedTuple):
    """The result of a listing: where the `uri`s start, the samples, and what their ids are."""

    root: str
    samples: list[Sample]
    ids: str = "paths"
    pieces: Mapping[str, Sequence[int]] = {}
    """See `Listing`."""
    versions: Mapping[str, Version] = {}
    """See `Listing`."""


def is_image_name(name: str) -> bool:
    """Tell whether a name has the suffix of an image."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def without_query(name: str) -> str:
    """Return a URL without its query, which may hold a signature; other names as they are."""
    return name.partition("?")[0] if is_url(name) else name


def suffix_of(name: str) -> str:
    """Return a name's suffix in small letters."""
    return posixpath.splitext(without_query(name))[1].lower()


def shown_file(root: str, name: str) -> str:
    """Return what messages call a file below a root. A URL with a query is a whole name."""
    return without_query(name) if is_url(name) else f"{root}/{name}"


def unlisted(folder: str) -> str:
    """Return what a folder that cannot be listed counts as. Only root may read some leftovers, such as `lost+found`."""
    return LEFTOVERS if is_leftover(folder) else "folders that cannot be listed"


def left_as(name: str) -> str:
    """Return what a file that has no image's suffix counts as."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in _UNREAD_SUFFIXES:
        return f"{suffix} pictures, which are not read"
    return "files without an image's suffix"


def named(image_id: str, uri: str, what: str) -> Sample:
    """Make a sample, with a problem if its name is not UTF-8 or holds a NUL.

    Args:
        image_id: the id; bytes that are not UTF-8 are Python's surrogate escapes, here and in `uri`.
        uri: where its bytes are.
        what: what bears the name (a file, a tar's member), for the problem.
    """
    try:
        image_id.encode()
    except UnicodeEncodeError:
        problem = f"the name of the {what} is not UTF-8; rename it"
        return Sample(escaped(image_id), escaped(uri), problem)
    if "\0" in image_id:
        return Sample(repr(image_id), uri, f"the name of the {what} holds a NUL character; rename it")
    return Sample(image_id, uri)


def escaped(text: str) -> str:
    """Replace what is not UTF-8 in a text by backslash escapes, so that it can be written."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a UTF-16 pair, from JSON
        return text.encode("utf-8", "backslashreplace").decode()


def row_id(row: int) -> str:
    """Format a row number as an id of fixed width, so that ids sort as rows do."""
    return f"{row:09d}"


def row_place(uri: str) -> tuple[str, int]:
    """Split `FILE#ROW` into its parts."""
    name, _, row = uri.rpartition("#")
    return name, int(row)


def row_sample(image_id: str | NoId, uri: str, row: str, column: str) -> Sample:
    """Make the sample of a row.

    Args:
        image_id: its id; if there is none, the sample has a problem.
        uri: where its bytes are.
        row: what the sample is called if it has no id.
        column: the column of the ids.
    """
    if isinstance(image_id, NoId):
        return Sample(row, uri, f"expected an id in the column {column!r}; found {image_id.found}")
    return named(image_id, uri, "image")


def chosen_ids(
    columns: Mapping[str, Callable[[], list[str | NoId]]], asked: str | None, rows: Sequence[int] | None = None
) -> tuple[str, list[str | NoId]] | None:
    """Choose the column that ids come from, and return its name and values, or None if no column is suitable.

    Args:
        columns: the columns that may be asked for, and what reads one.
        asked: the column that must be taken; None for the first of `columns` that has a different value in every row,
            and none missing.
        rows: the rows that count and whose values are returned, because they have an image; None for all.
    """
    for name, read in columns.items() if asked is None else [(asked, columns[asked])]:
        values = read()
        if rows is not None:
            values = [values[row] for row in rows]
        if asked is not None:
            return name, values
        texts = [value for value in values if isinstance(value, str)]
        if len(set(texts)) == len(texts) and not {MISSING, NOT_A_NUMBER}.intersection(values):
            return name, values
    return None


def candidates(names: list[str], asked: str | None, shown: str) -> list[str]:
    """List the columns that may hold ids, the best first.

    Raises:
        UserError: there is no column `asked`.
    """
    if asked is None:
        return [name for name in ID_COLUMNS if name in names]
    if asked not in names:
        raise UserError(f"{shown}: expected a column {asked!r}, which --id-column asks for; found {', '.join(names)}")
    return [asked]


def image_column(eligible: list[str], shown: str) -> str | None:
    """Choose the image's column among those that hold bytes, or None if there are none.

    Raises:
        UserError: there are several, and none has a name that says so.
    """
    best = [name for name in IMAGE_COLUMNS if name in eligible] or eligible
    if len(best) > 1 and best[0] not in IMAGE_COLUMNS:
        raise UserError(f"{shown}: expected one column of images, or one called 'image'; found {', '.join(eligible)}")
    return best[0] if best else None

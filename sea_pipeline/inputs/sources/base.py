"""What every source of images is, and what names and ids must be."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.samples import Sample
from sea_pipeline.inputs.sources.values import MISSING, NOT_A_NUMBER, NoId

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"}
    | {".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Names that a listing takes for images; what they really are is seen when they are read."""
OTHER_FILES = "files without an image's suffix"
ID_COLUMNS = ("image_id", "id", "key", "__key__", "file_name")
"""Columns that are taken for ids, the first one whose values are all there and differ."""
ROW_NUMBERS = "row numbers"
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "bytes")


class Source(Protocol):
    """Where images are read from; `open_source` makes one from a location. It can be used from threads."""

    readers: int
    """How many reads at once keep it busy."""
    random_access: bool
    """Whether any image is as near as the next one."""

    def read(self, uri: str) -> bytes:
        """The bytes of one image, as its file or its row holds them.

        Raises:
            BadImageError: this image is not there, or cannot be read (stage `read`).
            UserError: the whole source is gone, or refuses the credentials.
            OSError: the machine or the network is at fault; it may pass.
        """
        ...

    def where(self, uri: str) -> tuple[str, int]:
        """Where an image's bytes lie, to be sorted by: images are read fastest in that order, equal ones in any."""
        ...


class Found(NamedTuple):
    """What a listing found: where the `uri`s start, the samples, and what their ids are."""

    root: str
    samples: list[Sample]
    ids: str = "paths"
    pieces: Mapping[str, Sequence[int]] = {}
    """See `Listing`."""


def is_image_name(name: str) -> bool:
    """Whether a name ends as images do."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def named(image_id: str, uri: str, what: str) -> Sample:
    """A sample; one with a problem where the name of `what` (a file, a tar's member) is not UTF-8.

    Bytes that are not UTF-8 stand in `image_id` and `uri` as Python's surrogate escapes.
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
    """Text that can be written, with what is not UTF-8 as backslash escapes."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a UTF-16 pair, from JSON
        return text.encode("utf-8", "backslashreplace").decode()


def row_id(row: int) -> str:
    """A row number as an id: of a fixed width, so that ids sort as rows do."""
    return f"{row:09d}"


def row_place(uri: str) -> tuple[str, int]:
    """`FILE#ROW` as its parts."""
    name, _, row = uri.rpartition("#")
    return name, int(row)


def row_sample(image_id: str | NoId, uri: str, row: str, column: str) -> Sample:
    """The sample of a row, by its id in `column`; one with a problem, called `row`, where it has none."""
    if isinstance(image_id, NoId):
        return Sample(row, uri, f"expected an id in the column {column!r}; found {image_id.found}")
    return named(image_id, uri, "image")


def chosen_ids(
    columns: Mapping[str, Callable[[], list[str | NoId]]], asked: str | None
) -> tuple[str, list[str | NoId]] | None:
    """The name and the values of the column that ids come from; None where no column will do.

    Args:
        columns: the columns that may be asked for, and what reads one.
        asked: the one that must be taken; None for the first of `columns` with a different value in every row, and none
            missing.
    """
    if asked is not None:
        return asked, columns[asked]()
    for name, read in columns.items():
        values = read()
        texts = [value for value in values if isinstance(value, str)]
        if len(set(texts)) == len(texts) and not {MISSING, NOT_A_NUMBER}.intersection(values):
            return name, values
    return None


def candidates(names: list[str], asked: str | None, shown: str) -> list[str]:
    """The columns that may hold ids, the best first.

    Raises:
        UserError: there is no column `asked`.
    """
    if asked is None:
        return [name for name in ID_COLUMNS if name in names]
    if asked not in names:
        raise UserError(f"{shown}: expected a column {asked!r}, which --id-column asks for; found {', '.join(names)}")
    return [asked]


def image_column(eligible: list[str], shown: str) -> str | None:
    """Which of the columns that hold bytes is the image's; None where there is none.

    Raises:
        UserError: there are several, and none has a name that says so.
    """
    best = [name for name in _IMAGE_COLUMNS if name in eligible] or eligible
    if len(best) > 1 and best[0] not in _IMAGE_COLUMNS:
        raise UserError(f"{shown}: expected one column of images, or one called 'image'; found {', '.join(eligible)}")
    return best[0] if best else None

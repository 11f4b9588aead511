"""The small JSON files of an output folder: what it is, what is done, what is in it."""

from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.settings import Strict, complaint
from sea_pipeline.storage.hashing import file_sha256, fingerprint_of
from sea_pipeline.storage.json_files import Count, Moment, PathInside, Seconds, Sha256, Text, json_object
from sea_pipeline.storage.paths import Place, below

FILES = "files.json"
"""Beside the files that it names."""
SCHEMA_VERSION = 2
"""Of folders that are begun now; one that was begun in another version stays in it. 2: scores of labels are float32."""
READABLE_VERSIONS = (1, SCHEMA_VERSION)

_Record = TypeVar("_Record", bound="Record")


class OtherVersionError(UserError):
    """A record is of a version of the schema that this one does not read."""


class Record(Strict):
    """A small JSON file of an output folder: each value has its one type, and every number is finite."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """Indented JSON with a newline at its end."""
        return (self.model_dump_json(indent=2) + "\n").encode()


class File(Record):
    """A file by its path inside the output folder, its size in bytes and its sha256."""

    path: PathInside
    bytes: Count
    sha256: Sha256


class Part(Record):
    """Images that were planned together: those that a folder was begun with, or those of one `--extend`."""

    plan: Sha256
    """sha256 of the planned ids in their order; the commits of its shards name it."""
    images: Count
    shards: Count
    fields: dict[str, Any] = Field(default_factory=dict)
    """Of the dataset's fields those that have grown with the input, as they were for this part."""


class Dataset(Record):
    """`dataset.json`: what an output folder is."""

    schema_version: Count
    kind: Annotated[str, Field(pattern="^[a-z]+$")]
    """What the shards hold: `labels`."""
    fields: dict[str, Any]
    """Everything that decides the shards' content, by name. Paths, batch sizes and devices do not."""
    fingerprint: Sha256
    """sha256 of the canonical JSON of `fields`."""
    plan: Sha256
    """sha256 of the planned ids in their order."""
    images: Count
    shards: Count
    shard_size: Annotated[Count, Field(ge=1)]
    source: Text
    """What the images were listed from; for people."""
    image_root: Text
    """Where the `uri`s of the images start, as text that `sources.open_source` reads images from."""
    encoder: Text | None = None
    """Of labels: the spec that loads the encoder again. Where its weights lie decides nothing, so it is no field."""
    files: list[File]
    """`plan.parquet` and what else was written before the first shard."""
    parts: list[Part] = Field(default_factory=list)
    """Of a folder that was extended: all that was planned, in its order. Else it is one part, and this is absent."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if fingerprint_of(self.fields) != self.fingerprint:
            raise ValueError("its fingerprint is not that of its fields")
        parts = self.all_parts()
        if (sum(part.shards for part in parts), sum(part.images for part in parts)) != (self.shards, self.images):
            raise ValueError("its parts do not add up")
        if any(part.shards != -(-part.images // self.shard_size) for part in parts):
            raise ValueError("its numbers of images and of shards do not fit")
        return self

    def all_parts(self) -> list[Part]:
        """What was planned, in its order; the first part is what the folder was begun with."""
        return self.parts or [Part(plan=self.plan, images=self.images, shards=self.shards)]

    def latest_fields(self) -> dict[str, Any]:
        """The fields, with those that grow with the input as they were when it was last extended."""
        return self.fields | self.all_parts()[-1].fields

    def to_bytes(self) -> bytes:
        """See `Record`."""
        shown = self.model_dump_json(indent=2, exclude=None if self.parts else {"parts"})
        return (shown + "\n").encode()


class Commit(Record):
    """`commits/NNNNN.json`: one finished shard."""

    schema_version: Count = 1
    """The dataset's; absent in version 1."""
    shard: Count
    fingerprint: Sha256
    plan: Sha256
    rows: Count
    bad: Count
    files: Annotated[list[File], Field(min_length=1, max_length=2)]
    """The shard first, then its quarantine where there is one."""
    reasons: dict[str, Count]
    """Bad images by stage and error."""
    seconds: dict[str, Seconds]
    """Time by part; decoding runs beside the others and is summed over its threads."""
    first_image_sha256: Sha256 | None
    """Of the bytes of the shard's first good image: other images under the same names are noticed by it."""
    peak_memory_bytes: Count
    attempt: Annotated[Count, Field(ge=1)]
    host: str
    versions: dict[str, str]
    finished: Moment

    def to_bytes(self) -> bytes:
        """See `Record`."""
        shown = self.model_dump_json(indent=2, exclude={"schema_version"} if self.schema_version == 1 else None)
        return (shown + "\n").encode()


class FilesRecord(Record):
    """`files.json`: what a folder holds that is written once and read as a whole, such as a checkpoint."""

    files: list[File]


class Manifest(Record):
    """`manifest.json`: a finished folder. The same input and settings give the same bytes."""

    schema_version: Count
    kind: str
    fields: dict[str, Any]
    fingerprint: Sha256
    plan: Sha256
    rows: Count
    bad: Count
    shards: list[File]
    """In plan order."""
    shard_rows: list[Count]
    other_files: list[File]


def load_record(path: Place, record: type[_Record]) -> _Record:
    """Reads one of the JSON files above.

    Raises:
        UserError: it is absent, is not JSON, or holds something else than this version writes.
    """
    data = _read(path)
    try:
        found = json_object(data)
        version = found.get("schema_version", SCHEMA_VERSION)
        if version not in READABLE_VERSIONS and isinstance(version, int):
            expected = " or ".join(map(str, READABLE_VERSIONS))
            raise OtherVersionError(
                f"{path}: expected schema version {expected}, found {version!r:.20}; read it with the "
                "sea-pipeline that wrote it"
            )
        return record.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{path}: damaged{first_problem(error)}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: damaged: {one_line(error)}") from error


def find_record(path: Place, record: type[_Record]) -> _Record | None:
    """The same, or None if it is absent."""
    try:
        return load_record(path, record)
    except UserError as problem:
        if isinstance(problem.__cause__, FileNotFoundError):
            return None
        raise


def _read(path: Place) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a file; found none") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: expected a file; found a folder") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def first_problem(error: ValidationError) -> str:
    """What is wrong with the first value that is: behind "damaged" in a message."""
    item = error.errors(include_url=False)[0]
    where = "".join(f"{part}: " for part in [".".join(map(str, item["loc"]))] if part)
    if item["type"] == "extra_forbidden":
        return f", or written by another version: {where}expected no such key"
    if item["type"] == "missing":
        return f": {where}expected a value; found none"
    said = f": {where}{complaint(item)}"
    return said if isinstance(item["input"], dict | list | bytes) else f"{said}; found {item['input']!r:.60}"


def file_record(root: Place, path: Place) -> File:
    """Size and hash of a file below `root`, as they are now: from a store elsewhere it is read back."""
    return File(path=below(root, path), bytes=path.stat().st_size, sha256=file_sha256(path))


def check_file(root: Place, file: File) -> str | None:
    """One line that says how a file differs from its record, or None."""
    path = root / file.path
    try:
        if problem := check_size(root, file):
            return problem
        if (found := file_sha256(path)) != file.sha256:
            return f"{path}: damaged: expected sha256 {file.sha256[:12]}…, found {found[:12]}…"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return None


def check_size(root: Place, file: File) -> str | None:
    """The same without reading it: whether it is a file of its size."""
    path = root / file.path
    try:
        size = path.stat().st_size
        if isinstance(path, Path) and path.is_dir():
            return f"{path}: expected a file of {file.bytes:,} bytes; found a folder"
        return f"{path}: expected {file.bytes:,} bytes, found {size:,}" if size != file.bytes else None
    except FileNotFoundError:
        return f"{path}: expected a file of {file.bytes:,} bytes; found none"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"

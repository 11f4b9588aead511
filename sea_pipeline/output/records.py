"""Define the small JSON files of an output folder, and read and check them."""

from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.settings import Count, Strict, complaint
from sea_pipeline.storage.hashing import file_sha256, fingerprint_of
from sea_pipeline.storage.json_files import Moment, PathInside, Seconds, Sha256, Text, json_object
from sea_pipeline.storage.paths import Place, below
from sea_pipeline.storage.retry import StoreError, refuse_unreadable

FILES = "files.json"
"""The name of a `FilesRecord`, which is next to the files that it names."""
SCHEMA_VERSION = 2
"""The version of folders begun now. A folder keeps the version it was begun in. In 2, label scores are float32."""
READABLE_VERSIONS = (1, SCHEMA_VERSION)

_Record = TypeVar("_Record", bound="Record")


class OtherVersionError(UserError):
    """A record has a version of the schema that this version cannot read."""


class Record(Strict):
    """A small JSON file of an output folder, with strict types and finite numbers."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """Encode the record as indented JSON that ends with a newline."""
        return (self.model_dump_json(indent=2) + "\n").encode()


class File(Record):
    """A file by its path inside the output folder, its size in bytes and its sha256."""

    path: PathInside
    bytes: Count
    sha256: Sha256


class Part(Record):
    """Images that were planned together, when the folder was begun or by one `--extend`."""

    plan: Sha256
    """sha256 of the planned ids in their order. The commits of its shards name it."""
    images: Count
    shards: Count
    fields: dict[str, Any] = Field(default_factory=dict)
    """Values, when this part was planned, of the dataset's fields that grow with the input."""


class DatasetFile(Record):
    """`dataset.json`, which says what an output folder is."""

    schema_version: Count
    kind: Annotated[str, Field(pattern="^[a-z]+$")]
    """What the shards hold: `labels`."""
    fields: dict[str, Any]
    """Everything that decides the content of the shards, by name. Paths, batch sizes and devices decide nothing."""
    fingerprint: Sha256
    """sha256 of the canonical JSON of `fields`."""
    plan: Sha256
    """sha256 of the planned ids in their order."""
    images: Count
    shards: Count
    shard_size: Annotated[Count, Field(ge=1)]
    source: Text
    """The input that the images were listed from, for people."""
    image_root: Text
    """The root of the images' `uri`s, as text that `sources.open_source` opens."""
    encoder: Text | None = None
    """For labels, the spec that loads the encoder again. It is not in `fields`, because a path decides nothing."""
    files: list[File]
    """`plan.parquet` and the other files that were written before the first shard."""
    parts: list[Part] = Field(default_factory=list)
    """The parts of an extended folder in their order. Absent from the file of a folder that is one part."""

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
        """Return the planned parts in their order, the first being what the folder was begun with."""
        return self.parts or [Part(plan=self.plan, images=self.images, shards=self.shards)]

    def latest_fields(self) -> dict[str, Any]:
        """Return the fields, with the values of the last extension for those that grow with the input."""
        return self.fields | self.all_parts()[-1].fields

    def to_bytes(self) -> bytes:
        """Encode the dataset as `Record` does, without `parts` if there are none."""
        shown = self.model_dump_json(indent=2, exclude=None if self.parts else {"parts"})
        return (shown + "\n").encode()


class Commit(Record):
    """`commits/NNNNN.json`, the record of one finished shard."""

    schema_version: Count = 1
    """The dataset's; absent in version 1."""
    shard: Count
    fingerprint: Sha256
    plan: Sha256
    rows: Count
    bad: Count
    files: Annotated[list[File], Field(min_length=1, max_length=2)]
    """The shard, then its quarantine if it has bad images."""
    reasons: dict[str, Count]
    """Bad images by stage and error."""
    seconds: dict[str, Seconds]
    """Time by part of the work. Decoding runs at the same time as the rest and is summed over its threads."""
    first_image_sha256: Sha256 | None
    """sha256 of the bytes of the shard's first good image, which reveals other images under the same names."""
    peak_memory_bytes: Count
    attempt: Annotated[Count, Field(ge=1)]
    host: str
    versions: dict[str, str]
    finished: Moment

    def to_bytes(self) -> bytes:
        """Encode the commit as `Record` does, without `schema_version` in version 1."""
        shown = self.model_dump_json(indent=2, exclude={"schema_version"} if self.schema_version == 1 else None)
        return (shown + "\n").encode()


class FilesRecord(Record):
    """`files.json`, which names the files of a folder that is written once and read whole, such as a checkpoint."""

    files: list[File]


class Manifest(Record):
    """`manifest.json`, the record of a finished folder.

    The same input and settings give the same bytes.
    """

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
    """Read one of the JSON files above.

    Raises:
        UserError: the file is absent, is not JSON, or holds something that this version does not write.
        StoreError: it cannot be read, which says nothing about the file.
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
    """Read one of the JSON files above, or return None if it is absent.

    Raises:
        UserError: see `load_record`.
    """
    try:
        return load_record(path, record)
    except UserError as problem:
        if isinstance(problem.__cause__, FileNotFoundError):
            return None
        raise


def whole_record(path: Place, record: type[_Record]) -> _Record | None:
    """Read one of the JSON files above, or return None if it is absent or damaged.

    Raises:
        StoreError: it cannot be read, which says nothing about the file.
    """
    try:
        return load_record(path, record)
    except StoreError:
        raise
    except UserError:
        return None


def _read(path: Place) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a file; found none") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: expected a file; found a folder") from error
    except OSError as error:
        refuse_unreadable(path, error)
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def first_problem(error: ValidationError) -> str:
    """Describe the first wrong value as text that follows "damaged" in a message."""
    item = error.errors(include_url=False)[0]
    place = ".".join(map(str, item["loc"]))
    where = f"{place}: " if place else ""
    if item["type"] == "extra_forbidden":
        return f", or written by another version: {where}expected no such key"
    if item["type"] == "missing":
        return f": {where}expected a value; found none"
    said = f": {where}{complaint(item)}"
    return said if isinstance(item["input"], dict | list | bytes) else f"{said}; found {item['input']!r:.60}"


def file_record(root: Place, path: Place) -> File:
    """Record the present size and hash of a file below `root`.

    A file of a store elsewhere is read back.
    """
    return File(path=below(root, path), bytes=path.stat().st_size, sha256=file_sha256(path))


def check_file(root: Place, file: File) -> str | None:
    """Describe in one line how a file differs from its record, or return None.

    Raises:
        StoreError: it cannot be read, which says nothing about the file.
    """
    path = root / file.path
    try:
        if problem := check_size(root, file):
            return problem
        if (found := file_sha256(path)) != file.sha256:
            return f"{path}: damaged: expected sha256 {file.sha256[:12]}…, found {found[:12]}…"
    except OSError as error:
        refuse_unreadable(path, error)
        return f"{path}: cannot be read: {error.strerror}"
    return None


def check_size(root: Place, file: File) -> str | None:
    """Describe in one line how a file's kind or size differs from its record, or return None.

    The file is not read. Raises as `check_file` does.
    """
    path = root / file.path
    try:
        size = path.stat().st_size
        if isinstance(path, Path) and path.is_dir():
            return f"{path}: expected a file of {file.bytes:,} bytes; found a folder"
        return f"{path}: expected {file.bytes:,} bytes, found {size:,}" if size != file.bytes else None
    except FileNotFoundError:
        return f"{path}: expected a file of {file.bytes:,} bytes; found none"
    except OSError as error:
        refuse_unreadable(path, error)
        return f"{path}: cannot be read: {error.strerror}"

"""Check that rows cached by `datasets` are as they were written.

Its files have no checksums and are mapped into memory: a flipped bit would train other tokens, or crash the process. So
a record in the same folder holds each file's size and hash.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.progress import Reporter, progress_if_slow, without_progress_bars
from sea_pipeline.output.records import FilesRecord, check_file, file_record, whole_record
from sea_pipeline.storage.locks import locked
from sea_pipeline.storage.publish import make_folder, publish_bytes, writing

Rows = Callable[[], Iterator[dict[str, Any]]]

_KEY = b'"conversations"'
_CHUNK = 64
"""Rows after which progress is reported."""


def reported(rows: Rows, path: Path, reporter: Reporter) -> Rows:
    """Return a function that makes the same rows and reports progress if that takes longer than seconds.

    Args:
        rows: yields a row for each record of a file.
        path: the file.
        reporter: receives the progress. Of processes that come at once, the one that makes the rows speaks.
    """

    def speaking() -> Iterator[dict[str, Any]]:
        with progress_if_slow(reporter, f"reading {path}", _records(path)) as advance:
            for number, row in enumerate(rows(), 1):
                yield row
                if not number % _CHUNK:
                    advance(_CHUNK)

    return speaking


def _records(path: Path) -> int:
    """Count the records of a file by their key, which takes a hundredth of the time that reading them takes."""
    found, end = 0, b""
    with path.open("rb") as file:
        for part in iter(partial(file.read, 1 << 20), b""):
            found += (end + part).count(_KEY)
            end = part[1 - len(_KEY) :]
    return found


def kept_rows(rows: Rows, features: datasets.Features, folder: Path, fingerprint: str) -> datasets.Dataset:
    """Load the rows that an earlier call cached under this fingerprint, or make them.

    A cache that has changed since it was written is made anew.

    Args:
        rows: yields the rows; called only if they must be made.
        features: columns of the rows.
        folder: folder of the cache; created if it does not exist.
        fingerprint: hash of everything that decides the rows.

    Raises:
        UserError: `rows` raises it, or the folder cannot be written.
    """
    make_folder(folder)
    record = folder / f"{fingerprint}.json"
    if _is_damaged(folder, record):
        with locked(folder):  # all processes of a training run come here at once; the first one removes the cache
            if _is_damaged(folder, record):
                # The record goes last, because rows without one are taken as they are.
                for file in sorted(folder.rglob(f"*{fingerprint}*"), key=lambda file: file == record):
                    shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
    found = _generated(rows, features, folder, fingerprint)
    if not record.exists():
        held = {path for file in found.cache_files for path in Path(file["filename"]).parent.iterdir()}
        paths = sorted(path for path in held if path.is_file() and path.suffix != ".lock")
        written = FilesRecord(files=[file_record(folder, path) for path in paths])
        with suppress(FileExistsError):  # another process was faster
            publish_bytes(record, written.to_bytes(), folder, exclusive=True)
    return found


def _is_damaged(folder: Path, record: Path) -> bool:
    """Tell whether the record or a file that it names has changed.

    A cache without a record was not finished, and does not count as damaged.
    """
    if not (record.exists() or record.is_symlink()):
        return False
    found = whole_record(record, FilesRecord)
    return found is None or not found.files or any(check_file(folder, file) for file in found.files)


def _generated(rows: Rows, features: datasets.Features, folder: Path, fingerprint: str) -> datasets.Dataset:
    """Load or generate the dataset of this fingerprint.

    datasets writes to a temporary folder and renames it, so half a cache is never found.
    """
    with without_progress_bars(datasets), writing(folder):
        try:
            return datasets.Dataset.from_generator(
                rows, features=features, cache_dir=str(folder), fingerprint=fingerprint
            )
        except DatasetGenerationError as error:
            cause = _mendable(error)
            if cause is None:
                raise
            raise cause from None


def _mendable(error: BaseException) -> BaseException | None:
    """Find a UserError or OSError among the causes of datasets' own error, if there is one."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, UserError | OSError):
        inner = inner.__cause__ or inner.__context__
    return inner

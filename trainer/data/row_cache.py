"""Rows that `datasets` keeps on disk, as they were written: its files have no checksums and are mapped into memory.

Beside them a record says what each file was; a bit that flips in one would train other tokens, or end the process.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from sea_pipeline.core.errors import UserError
from sea_pipeline.output.records import FilesRecord, check_file, file_record, load_record
from sea_pipeline.storage.locks import alone
from sea_pipeline.storage.publish import make_folder, publish_bytes, writing

Rows = Callable[[], Iterator[dict[str, Any]]]


def kept_rows(rows: Rows, features: datasets.Features, folder: Path, fingerprint: str) -> datasets.Dataset:
    """What an earlier call made under this fingerprint, if it is as it was written; else it is made.

    Args:
        rows: makes them.
        features: their columns.
        folder: of the cache, which is made.
        fingerprint: of all that decides the rows.

    Raises:
        UserError: `rows` raises it, or the folder cannot be written.
    """
    make_folder(folder)
    record = folder / f"{fingerprint}.json"
    if _is_damaged(folder, record):
        with alone(folder):  # the processes of a training run all come at once; the first one makes it anew
            if _is_damaged(folder, record):
                for file in folder.rglob(f"*{fingerprint}*"):
                    shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
    found = _generated(rows, features, folder, fingerprint)
    if not record.exists():
        held = {path for file in found.cache_files for path in Path(file["filename"]).parent.iterdir()}
        paths = sorted(path for path in held if path.is_file() and path.suffix != ".lock")
        written = FilesRecord(files=[file_record(folder, path) for path in paths])
        with suppress(FileExistsError):  # another process was first
            publish_bytes(record, written.to_bytes(), folder, exclusive=True)
    return found


def _is_damaged(folder: Path, record: Path) -> bool:
    """Whether there is a record and it, or a file that it names, is another one; what has none is not finished."""
    if not (record.exists() or record.is_symlink()):
        return False
    try:
        files = load_record(record, FilesRecord).files
    except UserError:
        return True
    return not files or any(check_file(folder, file) for file in files)


def _generated(rows: Rows, features: datasets.Features, folder: Path, fingerprint: str) -> datasets.Dataset:
    """What datasets wrote under this fingerprint; it writes beside and renames, so half a cache is never found."""
    with _quiet(), writing(folder):
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
    """What stopped the generator, from below datasets' own errors, if it is for the user or for `writing`."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, UserError | OSError):
        inner = inner.__cause__ or inner.__context__
    return inner


@contextmanager
def _quiet() -> Iterator[None]:
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()

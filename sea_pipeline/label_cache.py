"""Unpack labels once into memory-mapped arrays, so that training reads any image in microseconds.

Labels are kept and shared as Parquet, from which reading single images at random takes milliseconds (a row group at a
time). Arrays have no checksums of their own, so `files.json` next to them holds their hashes, which are compared when
the arrays are opened.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.parallel import ThreadPool, prefetched_map
from sea_pipeline.core.progress import SILENT, Advance, Reporter, progress_if_slow, say_if_slow
from sea_pipeline.labels.format import from_stored
from sea_pipeline.labels.store import Labels, LabelStore
from sea_pipeline.output.records import FILES, FilesRecord, Manifest, check_file, file_record, whole_record
from sea_pipeline.output.row_store import NoSuchImageError
from sea_pipeline.storage.json_files import Sha256
from sea_pipeline.storage.locks import locked
from sea_pipeline.storage.paths import cache_folder
from sea_pipeline.storage.publish import make_folder, publish_folder

_ARRAYS = ("words", "scores", "crop_box")
_IDS = "ids.json"
_FILES = {_IDS, *(f"{name}.npy" for name in _ARRAYS)}


class _CacheRecord(FilesRecord):
    """`files.json` of unpacked labels."""

    manifest: Sha256 | None = None
    """The hash of the manifest that they were unpacked for. Those of earlier versions lack it."""


class LabelCache:
    """The labels of a run, a collection of image ids like `LabelStore`, which is cheap to send to another process."""

    def __init__(self, folder: Path, grid: tuple[int, int], top_n: int) -> None:
        self.folder = folder
        self.grid = grid
        self.top_n = top_n

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelCache, (self.folder, self.grid, self.top_n)  # each process maps the files itself

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._index

    def __getitem__(self, image_id: str) -> Labels:
        """Return the labels of one image.

        Raises:
            KeyError: there is no such image; the message counts the images and shows the nearest id.
        """
        if image_id not in self._index:
            raise NoSuchImageError(image_id, self._index)
        row = self._index[image_id]
        words, scores, crop_box = (self._arrays[name][row] for name in _ARRAYS)
        x0, y0, x1, y1 = crop_box.tolist()
        return Labels(*from_stored(words, scores, (-1, self.top_n)), self.grid, (x0, y0, x1, y1))

    @property
    def ids(self) -> list[str]:
        """Return the image ids in the order of the rows."""
        return list(self._index)

    @cached_property
    def _index(self) -> dict[str, int]:
        ids = json.loads((self.folder / _IDS).read_text("utf-8"))
        return {image_id: row for row, image_id in enumerate(ids)}

    @cached_property
    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}


def label_cache(store: LabelStore, root: str | Path | None = None, *, reporter: Reporter = SILENT) -> LabelCache:
    """Open the unpacked labels of a run, and unpack them first if they are absent or damaged.

    They are found by the hash of the manifest.

    Args:
        store: opened with `open_labels`, which has verified the shards.
        root: the folder of all unpacked labels; None for the cache folder. Labels take 4 bytes each, which is 13 GB for
            half a million images of 576 patches and 10 labels.
        reporter: receives progress if it takes longer than seconds.

    Raises:
        UserError: the folder cannot be written.
    """
    root = Path(root) if root else cache_folder() / "labels"
    make_folder(root)
    folder = root / _manifest_sha256(store)[:32]
    found = _made(folder)
    with say_if_slow(reporter, f"checking the unpacked labels in {folder}"):
        is_whole = _is_whole(folder)
    if not is_whole:
        with ExitStack() as stack:  # all processes of a training run come at once, and the first one unpacks
            with say_if_slow(reporter, f"waiting for a process that unpacks labels to {root}"):
                stack.enter_context(locked(root))
            if _made(folder) == found:
                _unpack_anew(store, folder, reporter)
    return LabelCache(folder, store.grid, store.top_n)


def _manifest_sha256(store: LabelStore) -> str:
    """Hash the manifest that the store was opened with, because the file may be an extension's by now."""
    return hashlib.sha256(Manifest.model_validate(store.manifest).to_bytes()).hexdigest()


def _unpack_anew(store: LabelStore, folder: Path, reporter: Reporter) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)  # a cache cleaner may have removed a file of it
    else:
        folder.unlink(missing_ok=True)
    try:
        with (
            progress_if_slow(reporter, "unpacking labels", len(store)) as advance,
            publish_folder(folder) as scratch,
        ):
            _unpack(store, scratch, advance)
    except (OSError, UserError):
        if not _is_whole(folder):  # else another machine's process, without a lock between us, was first
            raise


def _columns(store: LabelStore) -> dict[str, tuple[type[np.generic], int]]:
    """Map the name of each array to the type and the number of the values in a row."""
    size = store.grid[0] * store.grid[1] * store.top_n
    return {"words": (np.uint16, size), "scores": (np.float16, size), "crop_box": (np.float32, 4)}


def _is_whole(folder: Path) -> bool:
    """Tell whether every file is as it was written, and for the manifest whose hash the folder's name begins.

    Each file is hashed, in threads, because a flipped bit would look like a label. Folders without a record, of early
    versions, are not whole.
    """
    record = whole_record(folder / FILES, _CacheRecord)
    if record is None or not (record.manifest or folder.name).startswith(folder.name):
        return False
    with ThreadPool(len(_FILES)) as pool:
        problems = list(prefetched_map(pool, lambda file: check_file(folder, file), record.files))
    return {file.path for file in record.files} == _FILES and not any(problems)


def _made(folder: Path) -> tuple[int, int] | None:
    """Return the inode and time of the record of files, which tell new files from old ones.

    None if there is no record.
    """
    try:
        status = (folder / FILES).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _unpack(store: LabelStore, folder: Path, advance: Advance) -> None:
    columns = _columns(store)
    with ExitStack() as files:
        # They are not mapped, because the system kills a process that writes to a mapped file when the disk is full.
        arrays = {name: files.enter_context((folder / f"{name}.npy").open("wb")) for name in columns}
        for name, (dtype, width) in columns.items():
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (len(store), width)}
            np.lib.format.write_array_header_1_0(arrays[name], header)
        for table in store.tables(_ARRAYS):
            for name, (dtype, width) in columns.items():
                values = table[name].combine_chunks().flatten().to_numpy().astype(dtype, copy=False)
                assert values.size == len(table) * width, "every row has a value for each place"
                arrays[name].write(np.ascontiguousarray(values).data)
            advance(len(table))
    (folder / _IDS).write_text(json.dumps(store.ids), "utf-8")
    records = [file_record(folder, folder / name) for name in sorted(_FILES)]
    record = _CacheRecord(files=records, manifest=_manifest_sha256(store))
    (folder / FILES).write_bytes(record.to_bytes())

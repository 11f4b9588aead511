"""Write labels by word, for people who look for the images that have a word.

There is one row for each word and image. Labelled crops have no rows, because their cells are not those of the image.
Each file covers a range of images and is sorted by word, so a reader that uses Parquet's statistics reads little more
than the rows of the word that is asked for. Columns:

    word          string        the word itself; sorted as UTF-8 bytes
    image_id      string        in plan order within a word
    score         float32       the highest similarity s of the word in the image (SEA Eq. 6)
    cell_rows     list<uint16>  the row in the grid, from 0, of each patch that has the word among its n labels
    cell_columns  list<uint16>  the column of each of these patches, which are in row-major order

The files follow from the shards. Nothing else reads them, because `open_labels` and training read the shards.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sea_pipeline.labels.format import label_arrays
from sea_pipeline.labels.store import LabelStore
from sea_pipeline.output.records import File, check_file, file_record, whole_record
from sea_pipeline.storage.parquet import parquet_writer
from sea_pipeline.storage.publish import make_folder, publish, publish_bytes, scratch_path, sweep

BY_WORD = "by_word"
BY_WORD_VERSION = b"2"
"""Of which rows there are. A push begins anew what another version of the code began."""
LABELS_PER_FILE = 1 << 28
"""The most labels of a file, which are 46,000 images of 576 patches with ten labels. Sorting takes 3 GB of disk."""
LABELS_PER_BLOCK = 1 << 22
"""The number of labels that are sorted at once in memory."""
_ROWS_PER_GROUP = 1 << 16
_PLACES = pa.list_(pa.field("element", pa.uint16(), nullable=False))
SCHEMA = pa.schema(
    [
        pa.field("word", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("cell_rows", _PLACES, nullable=False),
        pa.field("cell_columns", _PLACES, nullable=False),
    ]
)
_TYPES: tuple[Any, ...] = np.uint16, np.uint32, np.uint16, np.float32
"""The types of the columns of `_LabelColumns`."""
_DICTIONARIES = ["word", "image_id", "cell_rows.list.element", "cell_columns.list.element"]


class _LabelColumns(NamedTuple):
    """Some labels of a file, in columns of equal length."""

    word: npt.NDArray[Any]
    """uint16: the word's place among the sorted words."""
    image: npt.NDArray[Any]
    """uint32: the image's place among the images of the file."""
    patch: npt.NDArray[Any]
    """uint16: the patch's place in the grid, row-major."""
    score: npt.NDArray[Any]
    """float32: the similarity s."""

    def by_word(self) -> "_LabelColumns":
        """Sort the labels by word, keeping the order of those of one word."""
        order = np.argsort(self.word, kind="stable")  # numpy sorts 16-bit integers by radix
        return _LabelColumns(*(column[order] for column in self))


def write_by_word(
    store: LabelStore,
    folder: Path,
    advance: Callable[[int], None] = lambda _: None,
    *,
    labels_per_file: int = LABELS_PER_FILE,
    labels_per_block: int = LABELS_PER_BLOCK,
) -> list[Path]:
    """Write the files of a run's labels by word, `00000.parquet` and so on, keeping those that are whole.

    Each has a record of its hash, `00000.json`, because a damaged file would be sent as it is.

    Args:
        store: the labels.
        folder: the folder of the files; a kill leaves only whole files.
        advance: called with the number of images that have passed.
        labels_per_file: the most places for labels of the images of a file, unless one image has more.
        labels_per_block: the number of labels that are sorted at once.

    Returns:
        The files, in the order of their images; none if there are no images.
    """
    make_folder(folder)
    sweep(folder)
    per_image = store.grid[0] * store.grid[1] * store.top_n
    per_file = max(1, labels_per_file // per_image)
    # A word's rank in UTF-8 order, by its id: sorting ranks sorts words.
    order = sorted(range(len(store.words)), key=lambda word: store.words[word].encode())
    ranks = np.empty(len(order), np.uint16)
    ranks[order] = np.arange(len(order))
    words = pa.array([store.words[word] for word in order], pa.string())
    ids, paths = store.ids, []
    for number, pieces in groupby(_pieces(store, per_file), key=lambda piece: piece[0]):
        path = folder / f"{number:05d}.parquet"
        paths.append(path)
        record = path.with_suffix(".json")
        if (kept := whole_record(record, File)) and check_file(folder, kept) is None:
            for _, _, table in pieces:
                advance(len(table))
            continue
        with publish(path, folder) as scratch, _SortedRuns(folder, len(words)) as runs:
            names = ids[number * per_file : (number + 1) * per_file]
            whole = np.array([not store.is_crop(name) for name in names])
            for block in _blocks(pieces, store, ranks, whole, labels_per_block // per_image, advance):
                runs.add(block)
            _write(scratch, runs.merged(labels_per_block), words, pa.array(names, pa.string()), store.grid[1])
        publish_bytes(record, file_record(folder, path).to_bytes(), folder)
    return paths


class _SortedRuns:
    """Keeps labels on disk in sorted runs, and merges them word by word."""

    def __init__(self, folder: Path, words: int) -> None:
        self._words = words
        self._paths = [scratch_path(folder, name) for name in _LabelColumns._fields]
        self._ends: list[npt.NDArray[np.int64]] = []
        """For each run, the end of each word's labels in the files."""
        self._files: list[BinaryIO] = []
        self._open = ExitStack()

    def __enter__(self) -> "_SortedRuns":
        for path in self._paths:
            make_folder(path.parent)
            self._open.callback(path.unlink, missing_ok=True)
            self._files.append(self._open.enter_context(path.open("wb")))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, labels: _LabelColumns) -> None:
        """Append a sorted run of labels, whose images follow those of the earlier runs."""
        labels = labels.by_word()
        for column, file in zip(labels, self._files, strict=True):
            file.write(np.ascontiguousarray(column).data)
        first = self._ends[-1][-1] if self._ends else 0
        self._ends.append(first + np.cumsum(np.bincount(labels.word, minlength=self._words)))

    def merged(self, most: int) -> Iterator[_LabelColumns]:
        """Yield all labels sorted by word.

        Each item has `most` labels at most, unless one word has more.
        """
        for file in self._files:
            file.flush()
        if not self._ends or not self._ends[-1][-1]:
            return
        # Run i is the slice begins[i] : ends[i][-1] of the files, and totals[w] counts the labels of words up to w.
        begins = [0, *(int(ends[-1]) for ends in self._ends[:-1])]
        totals = np.cumsum(sum(np.diff(ends, prepend=begin) for ends, begin in zip(self._ends, begins, strict=True)))
        word = 0
        while word < self._words:
            done = totals[word - 1] if word else 0
            end = max(word + 1, int(np.searchsorted(totals, done + most, side="right")))
            # Words word to end - 1 are a slice of every run. Sorting the slices stably keeps the images in order.
            parts = [
                slice(int(ends[word - 1]) if word else begin, int(ends[end - 1]))
                for ends, begin in zip(self._ends, begins, strict=True)
            ]
            labels = _LabelColumns(*(np.concatenate(self._read(number, parts)) for number in range(len(_TYPES))))
            if len(labels.word):
                yield labels.by_word()
            word = end

    def _read(self, column: int, parts: Sequence[slice]) -> list[npt.NDArray[Any]]:
        """Read parts of a column.

        A memory map would keep the pages of the whole file in memory.
        """
        kind = _TYPES[column]
        return [
            np.fromfile(self._paths[column], kind, part.stop - part.start, offset=part.start * np.dtype(kind).itemsize)
            for part in parts
        ]


def _pieces(store: LabelStore, per_file: int) -> Iterator[tuple[int, int, pa.Table]]:
    """Yield the rows in plan order, cut at the ends of files.

    Each item has the file's number, the first row's place in that file, and the rows.
    """
    row = 0
    for table in store.tables(("words", "scores")):
        start = 0
        while start < len(table):
            number, first = divmod(row + start, per_file)
            piece = table.slice(start, per_file - first)
            yield number, first, piece
            start += len(piece)
        row += len(table)


def _blocks(
    pieces: Iterable[tuple[int, int, pa.Table]],
    store: LabelStore,
    ranks: npt.NDArray[np.uint16],
    whole: npt.NDArray[np.bool_],
    images: int,
    advance: Callable[[int], None],
) -> Iterator[_LabelColumns]:
    """Yield the labels of the pieces, in blocks of `images` images or a few more.

    Args:
        pieces: the rows of one file, see `_pieces`.
        store: the labels.
        ranks: the rank of each word, by its id.
        whole: for each row of the file, whether it is of an image, and not of a crop.
        images: the number of images at which a block ends.
        advance: called with the number of images that have passed.
    """
    parts: list[_LabelColumns] = []
    held = 0
    for _, first, table in pieces:
        word_ids, scores = label_arrays(table, store.top_n)
        is_wanted = whole[first : first + len(table), np.newaxis, np.newaxis]
        image, patch, _ = there = np.nonzero((word_ids >= 0) & is_wanted)
        words = ranks[word_ids[there]]
        parts.append(_LabelColumns(words, (first + image).astype(np.uint32), patch.astype(np.uint16), scores[there]))
        held += len(table)
        if held >= images:
            yield _LabelColumns(*map(np.concatenate, zip(*parts, strict=True)))
            parts, held = [], 0
        advance(len(table))
    if parts:
        yield _LabelColumns(*map(np.concatenate, zip(*parts, strict=True)))


def _write(path: Path, blocks: Iterable[_LabelColumns], words: pa.Array, names: pa.Array, columns: int) -> None:
    encoding = {"score": "BYTE_STREAM_SPLIT"}
    with parquet_writer(
        path, SCHEMA, write_statistics=["word"], column_encoding=encoding, use_dictionary=_DICTIONARIES
    ) as writer:
        for labels in blocks:
            # A row begins at each change of word or image. Its score is the maximum over its labels.
            changes = (np.diff(labels.word) != 0) | (np.diff(labels.image) != 0)
            starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
            ends = pa.array(np.append(starts, len(labels.word)).astype(np.int32))
            rows = [
                words.take(pa.array(labels.word[starts])),
                names.take(pa.array(labels.image[starts])),
                pa.array(np.maximum.reduceat(labels.score, starts)),
                *(
                    pa.ListArray.from_arrays(ends, pa.array(places), type=_PLACES)
                    for places in np.divmod(labels.patch, np.uint16(columns))
                ),
            ]
            writer.write_table(pa.table(rows, schema=SCHEMA), row_group_size=_ROWS_PER_GROUP)

"""Reading labels: what training, reports and other people's scripts use."""

import bisect
import difflib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sea_pipeline.crops import CropBox
from sea_pipeline.errors import UserError
from sea_pipeline.ledger import QUARANTINE, Ledger
from sea_pipeline.records import Manifest, check_file
from sea_pipeline.shards import KIND, ROWS_PER_GROUP, label_arrays, read_mean_similarity, read_words


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one image."""

    word_ids: npt.NDArray[np.int32]
    """(patches, n): positions in the word list, best first; -1 where there is no label."""
    scores: npt.NDArray[np.float32]
    """(patches, n): similarity s (SEA Eq. 6), not negative; 0 where there is no label."""
    grid: tuple[int, int]
    """(rows, columns); patches are row-major."""
    crop_box: CropBox
    """x0, y0, x1, y1: the part of the upright image that the grid covers, 0..1."""


class LabelStore:
    """The labels of a finished run, by image id. Open it with `open_labels`."""

    def __init__(self, ledger: Ledger, manifest: Manifest, words: tuple[str, ...]) -> None:
        self.path = ledger.root
        self.words = words
        """The word list; word ids are positions in it."""
        self.top_n: int = manifest.fields["top_n"]
        self.grid: tuple[int, int] = tuple(manifest.fields["grid"])
        """(rows, columns)."""
        self.fingerprint = manifest.fingerprint
        self.manifest: dict[str, Any] = manifest.model_dump()
        """`manifest.json` as a dictionary."""
        self._ledger = ledger
        self.image_root = Path(ledger.dataset.image_root)
        self._shards = [ledger.root / file.path for file in manifest.shards]
        self._cached: tuple[tuple[int, int], pa.Table] | None = None

    def __len__(self) -> int:
        rows: int = self.manifest["rows"]
        return rows

    @cached_property
    def ids(self) -> list[str]:
        """The image ids in the order of the rows."""
        return [image_id for shard in self._shards for image_id in _column(shard, "image_id")]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._index

    def __getitem__(self, image_id: str) -> Labels:
        """The labels of one image.

        Raises:
            KeyError: there is no such image; says how many there are and shows the nearest id.
        """
        return self._labels(self._row(image_id))

    def uri(self, image_id: str) -> str:
        """Where the image was when it was labelled, relative to `image_root`."""
        uri: str = self._row(image_id)["uri"][0].as_py()
        return uri

    def tables(self) -> Iterator[pa.Table]:
        """All rows in plan order, one row group at a time."""
        for shard in self._shards:
            with _damage(shard):
                groups = _open(shard).num_row_groups
            yield from (_read(shard, group) for group in range(groups))

    def quarantine(self) -> Iterator[dict[str, Any]]:
        """The bad images: image_id, uri, stage, error, message, image_sha256."""
        return self._ledger.quarantined()

    def mean_similarity(self) -> npt.NDArray[np.float32]:
        """(words,): the mean of s over all patches of the run, for each word of the list (SEA Fig. 6b)."""
        return read_mean_similarity(self.path)

    @cached_property
    def _index(self) -> dict[str, tuple[int, int]]:
        places = ((shard, row) for shard, rows in enumerate(self.manifest["shard_rows"]) for row in range(rows))
        return dict(zip(self.ids, places, strict=True))

    def _row(self, image_id: str) -> pa.Table:
        if image_id not in self._index:
            raise KeyError(f"{image_id!r} is none of the {len(self):,} images{self._nearest(image_id)}")
        shard, row = self._index[image_id]
        group, inside = divmod(row, ROWS_PER_GROUP)
        if self._cached is None or self._cached[0] != (shard, group):
            self._cached = ((shard, group), _read(self._shards[shard], group))
        return self._cached[1].slice(inside, 1)

    def _nearest(self, image_id: str) -> str:
        image_id = str(image_id)
        name = image_id.rsplit("/", 1)[-1]
        ordered = sorted(self.ids)
        place = bisect.bisect(ordered, image_id)
        pool = ordered[max(0, place - 500) : place + 500]
        pool += [other for other in ordered if other.rsplit("/", 1)[-1] == name][:100]
        nearest = difflib.get_close_matches(image_id, pool, n=1, cutoff=0.0)
        return f"; the nearest is {nearest[0]!r}" if nearest else ""

    def _labels(self, row: pa.Table) -> Labels:
        word_ids, scores = label_arrays(row, self.top_n)
        crop = row["crop_box"].combine_chunks().flatten().to_numpy()
        return Labels(word_ids[0], scores[0], self.grid, tuple(float(edge) for edge in crop))  # type: ignore[arg-type]


def open_labels(path: str | Path, *, verify: bool = True) -> LabelStore:
    """Opens the labels that `sea-pipeline label` wrote.

    Args:
        path: the output folder.
        verify: hash every shard first. Without it damage is still found, but only when the damaged page is read.

    Raises:
        ValueError: it is no such folder, is not finished, or a file in it is not what was written; names the file.
    """
    root = Path(path)
    ledger = Ledger.open(root)
    if ledger.dataset.kind != KIND:
        raise UserError(f"{root}: expected labels, found {ledger.dataset.kind}")
    manifest = ledger.manifest()
    files = [file for file in manifest.other_files if not file.path.startswith(f"{QUARANTINE}/")]
    files += manifest.shards if verify else []
    with ThreadPoolExecutor(max_workers=4) as pool:
        for problem in pool.map(lambda file: check_file(root, file), files):
            if problem:
                raise UserError(f"{problem}; restore it, or delete it and run the command that labelled again")
    return LabelStore(ledger, manifest, read_words(root))


def _open(shard: Path) -> pq.ParquetFile:
    return pq.ParquetFile(shard, page_checksum_verification=True, memory_map=True)


def _column(shard: Path, name: str) -> list[Any]:
    with _damage(shard):
        values: list[Any] = _open(shard).read(columns=[name])[name].to_pylist()
    return values


def _read(shard: Path, group: int) -> pa.Table:
    with _damage(shard):
        return _open(shard).read_row_group(group)


@contextmanager
def _damage(shard: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{shard}: damaged: {' '.join(str(error).split())}") from error

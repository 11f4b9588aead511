"""Read the rows of a finished folder by image id, for labels and for targets."""

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sea_pipeline.core.errors import UserError
from sea_pipeline.core.near_names import nearest_name
from sea_pipeline.core.progress import SILENT, Reporter, progress_if_slow
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import File, Manifest
from sea_pipeline.output.verify import refuse_damage
from sea_pipeline.storage.hashing import fingerprint_of
from sea_pipeline.storage.parquet import Footers
from sea_pipeline.storage.paths import Place, map_over_store, place
from sea_pipeline.storage.publish import local_copy
from sea_pipeline.storage.retry import StoreError

_OF_NO_ROW = {"image_id", "image_sha256", "height", "width"}
"""Columns that no caller needs for a single image. Leaving them out saves a tenth of the time."""


class RowStore:
    """The rows of a finished folder, as a collection of image ids.

    It can be used from threads, pickled, and carried into forked processes: no file stays open between two reads.
    """

    def __init__(self, ledger: Ledger, manifest: Manifest, columns: Sequence[str]) -> None:
        self.path = ledger.root
        self.grid: tuple[int, int] = tuple(manifest.fields["grid"])
        """(rows, columns)."""
        self.fingerprint = manifest.fingerprint
        self.manifest: dict[str, Any] = manifest.model_dump()
        """`manifest.json` as a dictionary."""
        self.image_root = ledger.dataset.image_root
        """The root of the `uri`s, from which `sources.open_source` reads the images."""
        self._ledger = ledger
        self._shards = manifest.shards
        self._rows = dict(zip((file.path for file in self._shards), manifest.shard_rows, strict=True))
        self._columns = columns
        self._cached: tuple[tuple[int, int], pa.Table] | None = None
        self._footers = Footers()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the cached row group."""
        return self.__dict__ | {"_cached": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self):,} images{self._made_by()})"

    def _made_by(self) -> str:
        """Return what a store says of itself beside its path and its number of images."""
        return ""

    def __len__(self) -> int:
        rows: int = self.manifest["rows"]
        return rows

    @cached_property
    def ids(self) -> list[str]:
        """Return the image ids in the order of the rows."""
        return [image_id for (ids,) in self._values("image_id") for image_id in ids]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._index

    def uri(self, image_id: str) -> str:
        """Return the place below `image_root` at which the image was when its row was made."""
        uri: str = self._row(image_id)["uri"][0].as_py()
        return uri

    def image_sha256(self, image_id: str) -> bytes:
        """Return the sha256 of the image's file when its row was made."""
        shard, group, row = self._place(image_id)
        file = self._shards[shard]
        found: bytes = self._read(file, group, ["image_sha256"])["image_sha256"][row].as_py()
        return found

    def images_sha256(self, wanted: Collection[str]) -> str:
        """Hash which of the wanted images have rows, and the bytes of their files; what else there is does not count.

        With the folder's fingerprint this says what the rows hold.
        """
        shards = self._values("image_id", "image_sha256")
        contents = (pair for columns in shards for pair in zip(*columns, strict=True))
        return fingerprint_of({name: content.hex() for name, content in contents if name in wanted})

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield all rows in plan order, one row group at a time.

        Args:
            columns: the columns to read; None for all.
        """
        for shard in self._shards:
            # Copy the whole file: in a store elsewhere, each row group would cost several requests.
            with self._ledger.reading(shard), local_copy(self.path / shard.path) as copy:
                groups = self._open(shard, copy).num_row_groups
                yield from (self._read(shard, group, columns, copy) for group in range(groups))

    def quarantine(self) -> Iterator[dict[str, Any]]:
        """Yield the bad images.

        Each has image_id, uri, stage, error, message and image_sha256.
        """
        return self._ledger.quarantined()

    @cached_property
    def _index(self) -> dict[str, tuple[int, int, int]]:
        """Map each image id to its shard, its row group and its row in that group."""
        sizes = map_over_store(self.path, self._group_sizes, self._shards)
        places = (
            (shard, group, row)
            for shard, groups in enumerate(sizes)
            for group, rows in enumerate(groups)
            for row in range(rows)
        )
        return dict(zip(self.ids, places, strict=True))

    def _place(self, image_id: str) -> tuple[int, int, int]:
        """Find an image's shard, its row group and its row in that group.

        Raises:
            KeyError: there is no such image; says how many there are and shows the nearest id.
        """
        if image_id not in self._index:
            raise NoSuchImageError(image_id, self.ids)
        return self._index[image_id]

    def _row(self, image_id: str) -> pa.Table:
        """Read one image's row as a table of one row."""
        shard, group, row = self._place(image_id)
        cached = self._cached  # another thread may replace it
        if cached is None or cached[0] != (shard, group):
            file, columns = self._shards[shard], [name for name in self._columns if name not in _OF_NO_ROW]
            self._cached = cached = (shard, group), self._read(file, group, columns)
        return cached[1].slice(row, 1)

    def _open(self, shard: File, copy: Place | None = None) -> pq.ParquetFile:
        """Open a shard, or a copy of it, if it has the rows of the manifest that this store has read."""
        opened = self._footers.open(copy or self.path / shard.path)
        if opened.metadata.num_rows != self._rows[shard.path]:
            manifest = self._ledger.read_manifest()
            if manifest is None or shard not in manifest.shards:  # `--retry-bad` writes it again
                raise StoreError(f"{self.path / shard.path}: has changed since this program opened it; start it again")
            raise LookupError(f"expected {self._rows[shard.path]:,} rows, found {opened.metadata.num_rows:,}")
        return opened

    def _read(self, shard: File, group: int, columns: Sequence[str] | None, copy: Place | None = None) -> pa.Table:
        with self._ledger.reading(shard):
            rows = self._open(shard, copy).read_row_group(group, columns, use_threads=False)
            # Checksums cover pages, not the names of columns, so a damaged name must be looked for.
            if missing := set(columns or self._columns).difference(rows.column_names):
                raise LookupError(f"expected a column {min(missing)!r}")
        return rows

    def _group_sizes(self, shard: File) -> list[int]:
        with self._ledger.reading(shard):
            metadata = self._open(shard).metadata
            return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def _values(self, *names: str) -> Iterator[list[list[Any]]]:
        """Yield the values of some columns in plan order, shard by shard."""

        def read(shard: File) -> list[list[Any]]:
            with self._ledger.reading(shard):
                table = self._open(shard).read(columns=[*names], use_threads=False)
                return [table[name].to_pylist() for name in names]

        return map_over_store(self.path, read, self._shards)


class NoSuchImageError(KeyError):
    """An id that no image has.

    Its message names the nearest id. It is made when it is read, because that looks at all ids, and many callers only
    catch the error. Other processes get the message in place of the id.

    Args:
        image_id: the id.
        ids: the ids that there are; None if `image_id` is the message.
    """

    def __init__(self, image_id: object, ids: Collection[str] | None = None) -> None:
        super().__init__(image_id)
        self._ids = ids

    def __str__(self) -> str:
        wanted = self.args[0]
        if self._ids is None:
            return str(wanted)
        return f"{wanted!r} is none of the {len(self._ids):,} images{nearest_name(str(wanted), self._ids)}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self),)


def open_finished(
    path: str | Place, kind: str, *, verify: bool, reporter: Reporter = SILENT
) -> tuple[Ledger, Manifest]:
    """Open a finished folder of one kind and check its files, those of shards only if `verify`.

    Raises:
        UserError: it is no such folder, is not finished, or a file in it is not what was written; names the file.
    """
    ledger = Ledger.open(place(path))
    found = ledger.dataset.kind
    if found != kind and (ledger.root / found).is_dir():  # else `refuse_damage` says that the name is damaged
        raise UserError(f"{ledger.root}: expected {kind}, found {found}")
    with progress_if_slow(reporter, f"checking the shards of {ledger.root}", ledger.dataset.shards) as advance:
        refuse_damage(ledger, advance, shards=verify)
    return ledger, ledger.manifest()

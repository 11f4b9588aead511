"""Writes and reads shards of a teacher's targets (BASIC section 4.1).

There is one row for each image, in plan order. Bad images have no row here, but one in the quarantine table. An image
has m patches, row-major, with refined embeddings V^ of width d. Columns:

    image_id      string             the image's name in training data
    uri           string             its path, relative to the image root
    image_sha256  binary[32]         of the file's bytes
    attention     float32[m]         a, the degree of supervision of each patch (BASIC Eq. 5); sums to 1
    codes         binary[m * bytes]  V^ (BASIC Eq. 4) patch by patch, as the folder's codec writes it

The folder also has `codec.safetensors`, which decodes the codes; see `codecs.py`. The manifest's fields hold `grid`,
[rows, columns] with rows * columns = m; `width`, d; and `codec`, the codec's name.

The footer holds, under `sea_pipeline`, a JSON object with the fingerprint, its fields, and the `codec_sha256` of the
codec that wrote the codes. `teacher` there holds `pixels` and `embeddings`, values of the image processing and of the
LLM, see `trainer/data/same_teacher.py`. `sha256` is the hash of the other keys. Shards of older versions lack
`codec_sha256`, `teacher` or `sha256`. A row group holds about 1 MiB of codes, so that reading one image reads few
others.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sea_pipeline.core.errors import UserError
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.output.records import Manifest
from sea_pipeline.output.row_store import RowStore, open_finished
from sea_pipeline.storage.parquet import RowGroupWriter, shard_footer
from sea_pipeline.storage.paths import Place
from trainer.targets.codecs import Codec, CodecName, bytes_per_vector, load_codec

KIND = "targets"
CODEC = "codec.safetensors"

_GROUP_BYTES = 1 << 20
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Targets:
    """A teacher's targets for one image."""

    refined: npt.NDArray[np.float32]
    """V^, (m, d) (BASIC Eq. 4); patches are row-major."""
    attention: npt.NDArray[np.float32]
    """a, (m,), not negative, sums to 1 (BASIC Eq. 5)."""


class TargetRow(NamedTuple):
    """The stored row of one image."""

    image_id: str
    uri: str
    image_sha256: bytes
    targets: Targets


def target_schema(patches: int, bytes_per_vector: int) -> pa.Schema:
    """Return the columns of a shard of targets."""
    element = pa.field("element", pa.float32(), nullable=False)
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("image_sha256", pa.binary(32), nullable=False),
            pa.field("attention", pa.list_(element, patches), nullable=False),
            pa.field("codes", pa.binary(patches * bytes_per_vector), nullable=False),
        ]
    )


def bytes_per_image(patches: int, codec: CodecName, width: int) -> int:
    """Return the bytes of one image's codes and attention before compression.

    Compression saves little.
    """
    return patches * (bytes_per_vector(codec, width) + 4)


class TargetWriter(RowGroupWriter[TargetRow]):
    """Writes the rows of one shard of targets.

    Args:
        path: the file.
        patches: m.
        codec: encodes V^; the folder's `codec.safetensors`.
    """

    def __init__(self, path: Path, patches: int, codec: Codec) -> None:
        self._shape = patches, codec.width
        self._codec = codec
        rows = max(1, _GROUP_BYTES // (patches * codec.bytes_per_vector))
        super().__init__(path, target_schema(patches, codec.bytes_per_vector), rows)

    def add(self, row: TargetRow) -> None:
        """Append one image.

        Raises:
            ValueError: the targets are of other shapes or not finite, the attention does not sum to 1, or the codec
                cannot hold the V^ of this row, or of an earlier row of the same row group.
        """
        refined, attention = row.targets.refined, row.targets.attention
        if (refined.shape, attention.shape) != (self._shape, self._shape[:1]):
            found = f"{refined.shape} and {attention.shape}"
            raise ValueError(f"{row.image_id}: expected V^ {self._shape} and a {self._shape[:1]}, found {found}")
        total = attention.sum(dtype=np.float64)
        if not (abs(total - 1) <= _SUM_TOLERANCE and (attention >= 0).all()):
            raise ValueError(f"{row.image_id}: expected attention degrees >= 0 that sum to 1, found a sum of {total:g}")
        if not np.isfinite(refined).all():
            raise ValueError(f"{row.image_id}: expected a V^ that is finite")
        super().add(row)

    def arrays(self, rows: list[TargetRow]) -> list[pa.Array]:
        """Convert rows to the columns of `target_schema`."""
        columns = {
            "attention": [row.targets.attention.astype(np.float32) for row in rows],
            "codes": [self._codec.encode(row.targets.refined).tobytes() for row in rows],
        }
        return [
            pa.array(columns.get(field.name) or [getattr(row, field.name) for row in rows], field.type)
            for field in self.schema
        ]


class TargetStore(RowStore):
    """Gives the targets of a finished run by image id.

    Open it with `open_targets`.
    """

    def __init__(self, ledger: Ledger, manifest: Manifest, codec: Codec) -> None:
        super().__init__(ledger, manifest, target_schema(1, 1).names)
        self.width = codec.width
        """d."""
        self.codec = codec

    @cached_property
    def samples(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return the values that the last shard's footer has of its teacher; none if an older version wrote it."""
        last = self._shards[-1]
        with self._ledger.reading(last):
            said = shard_footer(self.path / last.path).get("teacher", {})
            return {name: np.array(values, np.float64) for name, values in said.items()}

    def __getitem__(self, image_id: str) -> Targets:
        """Return the targets of one image.

        The arrays belong to the caller.

        Raises:
            KeyError: there is no such image; the message gives the number of images and the nearest id.
        """
        row = self._row(image_id)
        codes = np.frombuffer(row["codes"][0].as_buffer(), np.uint8).reshape(-1, self.codec.bytes_per_vector)
        attention = row["attention"].combine_chunks().flatten().to_numpy().copy()
        return Targets(self.codec.decode(codes), attention)


def open_targets(path: str | Place, *, verify: bool = True) -> TargetStore:
    """Open the targets that `sea-pipeline teacher` wrote.

    Args:
        path: the output folder, on this machine or the URL of a store elsewhere (`s3://…`).
        verify: hash each shard first. Without it, damage is found only when the damaged page is read.

    Raises:
        ValueError: it is no such folder, is not finished, or a file in it is damaged; the message names the file.
    """
    ledger, manifest = open_finished(path, KIND, verify=verify)
    codec = load_codec(ledger.root / CODEC)
    expected, found = (manifest.fields["codec"], manifest.fields["width"]), (codec.name, codec.width)
    if found != expected:
        raise UserError(
            f"{ledger.root / CODEC}: expected {expected[0]} of width {expected[1]}, as manifest.json says; "
            f"found {found[0]} of width {found[1]}"
        )
    return TargetStore(ledger, manifest, codec)

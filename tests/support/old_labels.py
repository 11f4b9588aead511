"""A folder of labels as earlier versions wrote it: schema version 1, of which scores were float16."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def made_old(folder: Path) -> Path:
    """Rewrites a folder of labels, finished or not, with pyarrow alone."""
    hashes: dict[str, dict[str, Any]] = {}
    for shard in sorted((folder / "labels").iterdir()):
        write_old(shard)
        data = shard.read_bytes()
        hashes[f"labels/{shard.name}"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def file(record: dict[str, Any]) -> dict[str, Any]:
        return record | hashes.get(record["path"], {})

    for path in sorted((folder / "commits").iterdir()):
        commit = json.loads(path.read_text())
        del commit["schema_version"]
        _write(path, commit | {"files": [file(record) for record in commit["files"]]})
    for name in ("dataset.json", "manifest.json"):
        path = folder / name
        if path.exists():
            record = json.loads(path.read_text()) | {"schema_version": 1}
            _write(
                path, record | {"shards": [file(each) for each in record["shards"]]} if "manifest" in name else record
            )
    return folder


def write_old(shard: Path) -> None:
    """Rewrites one shard with the writer's options of then."""
    table, footer = pq.read_table(shard), pq.read_metadata(shard).metadata[b"sea_pipeline"]
    kind = pa.list_(pa.field("element", pa.float16(), nullable=False), table.schema.field("scores").type.list_size)
    values = table["scores"].combine_chunks().flatten().to_numpy().astype("f2")
    place = table.schema.get_field_index("scores")
    old = pa.FixedSizeListArray.from_arrays(pa.array(values), type=kind)
    table = table.set_column(place, pa.field("scores", kind, nullable=False), old)
    with pq.ParquetWriter(
        shard,
        table.schema.remove_metadata(),
        compression="zstd",
        compression_level=3,
        use_dictionary=False,
        column_encoding={"scores.list.element": "BYTE_STREAM_SPLIT"},
        write_statistics=["image_id"],
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=32)
        writer.add_key_value_metadata({b"sea_pipeline": footer})


def _write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")

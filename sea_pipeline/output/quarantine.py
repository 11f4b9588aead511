"""Write and read the table of a shard's bad images, with the stage and the reason of each failure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.inputs.samples import BadSample
from sea_pipeline.storage.parquet import open_parquet, parquet_writer
from sea_pipeline.storage.paths import Place

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image_id", "uri", "stage", "error", "message")),
        ("image_sha256", pa.binary(32)),
    ]
)


def write_quarantine(path: Path, bad: Sequence[BadSample]) -> None:
    """Write the table of one shard's bad images."""
    rows = [(item.sample.image_id, item.sample.uri, *item[1:]) for item in bad]
    columns = [list(column) for column in zip(*rows, strict=True)]
    with parquet_writer(path, _SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=_SCHEMA))


def read_quarantine(path: Place) -> list[dict[str, Any]]:
    """Read the bad images of one shard.

    Each has image_id, uri, stage, error, message and image_sha256.

    Raises:
        UserError: it is damaged.
    """
    try:
        table = open_parquet(path).read()
        if not table.schema.equals(_SCHEMA):
            raise UserError(f"{path}: damaged: expected the columns {', '.join(_SCHEMA.names)}")
        rows: list[dict[str, Any]] = table.to_pylist()
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged: {one_line(error)}") from error
    return rows

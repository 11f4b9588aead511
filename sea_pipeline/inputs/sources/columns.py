"""Find the column of a table or a dataset that holds the images, and those that may hold their ids."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow as pa

from sea_pipeline.core.errors import UserError
from sea_pipeline.inputs.sources.base import IMAGE_COLUMNS, PATH_COLUMNS, candidates, image_column
from sea_pipeline.inputs.sources.values import IDS, IMAGES, described, is_bytes, is_id, is_plain_bytes, is_text

PATHS_ALONE = (
    "give a list of the paths, in a column 'path', with --image-root, the folder that they start in; or save the "
    "dataset with save_to_disk, which keeps the bytes, and give it as hf:FOLDER"
)
"""What to do about a dataset that holds paths without the images' bytes, for messages."""


class Leaf(NamedTuple):
    """A column, or a field of a column that holds structs."""

    column: str
    child: str | None = None

    def __str__(self) -> str:
        return f"{self.column}.{self.child}" if self.child else self.column

    def of(self, rows: pa.RecordBatch | pa.Table) -> Iterator[pa.Array]:
        """Yield its values in some rows, chunk by chunk."""
        values = rows.column(self.column)
        for chunk in values.chunks if isinstance(values, pa.ChunkedArray) else [values]:
            yield chunk.flatten()[chunk.type.get_field_index(self.child)] if self.child else chunk


def image_leaf(schema: pa.Schema, shown: str, begins_as_images: Callable[[Leaf], bool] = lambda _: True) -> Leaf | None:
    """Find what holds the images' bytes, a column or the field `bytes` of a column of structs.

    None if nothing does.

    Bytes of a rarer type (dictionaries, views, lists of numbers from 0 to 255) count if no column has the usual one.

    Args:
        schema: the columns.
        shown: the table, for the message.
        begins_as_images: tells whether a column's values are images. It is asked only if the table also has a column
            of paths, whose hashes or embeddings a column with a name of its own may hold.

    Raises:
        UserError: there are several, and none has a name that says so.
    """
    has_paths = any(field.name in PATH_COLUMNS and is_text(field.type) for field in schema)
    for is_wanted in (is_plain_bytes, is_bytes):
        leaves: dict[str, Leaf] = {}
        for field in schema:
            inner = _child(field.type, "bytes")
            if schema.names.count(field.name) == 1 and is_wanted(field.type if inner is None else inner):
                leaf = Leaf(field.name, None if inner is None else "bytes")
                if leaf.child or field.name in IMAGE_COLUMNS or not has_paths or begins_as_images(leaf):
                    leaves[field.name] = leaf
        if (chosen := image_column(list(leaves), shown)) is not None:
            return leaves[chosen]
    return None


def path_leaf(schema: pa.Schema, image: Leaf) -> Leaf | None:
    """Find the field `path` in the struct of the image's bytes, or None if there is none."""
    path = _child(schema.field(image.column).type, "path") if image.child else None
    return Leaf(image.column, "path") if path is not None and is_text(path) else None


def id_columns(schema: pa.Schema, asked: str | None, shown: str) -> list[str]:
    """List the columns that ids may come from, the best first.

    Raises:
        UserError: there is no column `asked`, or it holds what cannot be ids.
    """
    names = candidates(schema.names, asked, shown)
    kinds = {name: [field.type for field in schema if field.name == name] for name in names}
    found = [name for name in names if len(kinds[name]) == 1 and is_id(kinds[name][0])]
    if asked is not None and not found:
        kind = kinds[asked][0] if len(kinds[asked]) == 1 else f"{len(kinds[asked])} columns of that name"
        raise UserError(f"{shown}: expected {IDS} in the column {asked!r}, which --id-column asks for; found {kind}")
    return found


def no_images(schema: pa.Schema) -> str:
    """Describe what a table has instead of a column of images."""
    found = described(schema)
    return f"expected a column of images{f' ({IMAGES})' if '(' in found else ''}; found {found}"


def _child(kind: pa.DataType, name: str) -> pa.DataType | None:
    if not pa.types.is_struct(kind):
        return None
    position = kind.get_field_index(name)
    return kind.field(position).type if position >= 0 else None

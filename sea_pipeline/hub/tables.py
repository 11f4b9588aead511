"""Describe the columns of a folder's Parquet files, for its metadata on the hub."""

from sea_pipeline.hub.by_word import BY_WORD
from sea_pipeline.hub.by_word import SCHEMA as BY_WORD_SCHEMA
from sea_pipeline.hub.croissant import Table
from sea_pipeline.labels.format import KIND as LABELS
from sea_pipeline.labels.format import MEANS
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.parquet import open_parquet

_IMAGE = {
    "image_id": "What training data calls the image.",
    "uri": "Where the image was, below the root of its input.",
}
_LABELS = _IMAGE | {
    "height": "Of the upright image, in pixels.",
    "width": "Of the upright image, in pixels.",
    "crop_box": "x0, y0, x1, y1: the part of the upright image that the grid covers, 0 to 1; beyond it where it was "
    "padded.",
    "words": "Ids of words, from 0 in the order of words.txt; patch by patch, row by row, n each, best first; 65535: "
    "no label.",
    "scores": "The similarity of each, not negative; 0 where there is no label.",
}
_TARGETS = _IMAGE | {"attention": "Each patch's share of the attention; they sum to 1."}
_WORD_LIST = {"word": "The word.", "mean_similarity": "Its mean similarity to all patches, labels or not."}
_BY_WORD = {
    "word": "The word.",
    "image_id": "An image with a patch that has it.",
    "score": "Its highest similarity in the image.",
    "cell_rows": "Of the patches that have it, the row in the grid, from 0.",
    "cell_columns": "Of the same patches, the column in the grid, from 0.",
}


def tables_of(ledger: Ledger) -> list[Table]:
    """Return the tables that a finished folder has on the hub."""
    kind, manifest = ledger.dataset.kind, ledger.manifest()
    shard = open_parquet(ledger.root / manifest.shards[0].path).schema_arrow if manifest.shards else None
    found = []
    if shard is not None:
        columns = _LABELS if kind == LABELS else _TARGETS
        crops = " or crop of one; a crop's id ends in #crop and its number" if "crops" in manifest.fields else ""
        found.append(Table(kind, f"{kind}/*.parquet", f"The {kind}, one row an image{crops}.", shard, columns))
    if kind == LABELS:
        means = open_parquet(ledger.root / MEANS).schema_arrow
        found.append(Table("word_list", MEANS, "The word list, in its order.", means, _WORD_LIST))
        if manifest.rows:
            said = "Which images have a word, and in which cells of their grid; one row a word and image."
            found.append(Table(BY_WORD, f"{BY_WORD}/*.parquet", said, BY_WORD_SCHEMA, _BY_WORD))
    return found

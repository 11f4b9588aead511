"""Choose the order in which images are read, and the order in which they are planned.

Rows of a table can only be read forward, from the start of their piece (a row group). So a shard's images are read in
the order of their bytes, whatever their order in the shard. If the ids scatter each shard's rows over the whole table,
that is not enough, because every shard would read all of it. Then the shards themselves are cut in the table's order.
"""

import bisect
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from sea_pipeline.inputs.samples import Listing, Sample
from sea_pipeline.inputs.sources.base import Source, row_place

OPEN_FILES = 4
"""Files that `tables` keeps open."""
_FEW = 2048
"""Reading this many more rows takes no noticeable time."""

_Place = tuple[str, int]


def reading_order(samples: Iterable[Sample], source: Source) -> list[Sample]:
    """Sort the images of a shard by the position of their bytes, with those that cannot be read first."""
    return sorted(samples, key=lambda sample: ("", -1) if sample.problem is not None else source.where(sample.uri))


def planning_order(listing: Listing, shard_size: int) -> list[Sample]:
    """Return the listed images in the order in which a new folder plans them.

    It is the order of the listing, except if shards cut from the listing would read over a quarter more rows, and over
    `_FEW` more, than shards cut from the table. Then it is the order of the table's rows.
    """
    if not listing.pieces:
        return listing.samples
    order = sorted(listing.samples, key=_place)  # stable, so the crops of an image keep their order
    by_place, as_listed = (_rows_read(samples, listing.pieces, shard_size) for samples in (order, listing.samples))
    return order if as_listed - by_place > max(_FEW, by_place // 4) else listing.samples


def _rows_read(samples: Sequence[Sample], pieces: Mapping[str, Sequence[int]], shard_size: int) -> int:
    """Count the rows that are read for all shards, one after the other.

    A reader that is in the right piece, at or before the row, continues; any other starts at the piece's first row.
    """
    at: OrderedDict[str, tuple[int, int]] = OrderedDict()
    rows = 0
    for first in range(0, len(samples), shard_size):
        shard = samples[first : first + shard_size]
        for name, row in sorted({_place(sample) for sample in shard if sample.problem is None}):
            start = pieces[name][bisect.bisect(pieces[name], row) - 1]
            piece, behind = at.get(name, (-1, 0))
            rows += row + 1 - (behind if piece == start and behind <= row else start)
            at[name] = start, row + 1
            at.move_to_end(name)
            if len(at) > OPEN_FILES:
                at.popitem(last=False)
    return rows


def _place(sample: Sample) -> _Place:
    """Return the file and the row of a sample.

    A damaged file comes before its rows.
    """
    return row_place(sample.uri) if sample.uri.rpartition("#")[2].isdecimal() else (sample.uri, -1)

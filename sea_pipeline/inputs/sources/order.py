"""The order that images are read in, and the one that they are planned in.

Rows of a table can only be read forward, from where their piece (a row group) begins. So a shard's images are read in
the order of their bytes, whatever order they have in the shard. Where the ids strew each shard's rows over the whole
table, that is not enough, because every shard would read all of it: the shards themselves are cut in the table's order.
"""

import bisect
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from sea_pipeline.inputs.samples import Listing, Sample
from sea_pipeline.inputs.sources.base import Source, row_place

OPEN_FILES = 4
"""Files that `tables` keeps open."""
_FEW = 2048
"""So many rows more are read in no time."""

_Place = tuple[str, int]


def reading_order(samples: Iterable[Sample], source: Source) -> list[Sample]:
    """The images of a shard as their bytes lie; those that cannot be read first."""
    return sorted(samples, key=lambda sample: ("", -1) if sample.problem is not None else source.where(sample.uri))


def planning_order(listing: Listing, shard_size: int) -> list[Sample]:
    """The listed images in the order that a new folder plans them in: that of the listing, nearly always.

    It is that of the table's rows if shards of the listing would read a quarter more rows than they need, or worse.
    """
    if not listing.pieces:
        return listing.samples
    order = sorted(listing.samples, key=_place)  # stable: the crops of an image stay as they are
    by_place, as_listed = (_rows_read(samples, listing.pieces, shard_size) for samples in (order, listing.samples))
    return order if as_listed - by_place > max(_FEW, by_place // 4) else listing.samples


def _rows_read(samples: Sequence[Sample], pieces: Mapping[str, Sequence[int]], shard_size: int) -> int:
    """How many rows are read for all shards, one after the other, by what goes on where it is, if it can."""
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
    """Of a file that is damaged, in front of its rows."""
    return row_place(sample.uri) if sample.uri.rpartition("#")[2].isdecimal() else (sample.uri, -1)

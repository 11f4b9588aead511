"""One image of an input, before it is read, and the list of them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Sample(NamedTuple):
    """One image, not yet read.

    `image_id` is what training data calls it: the LLaVA `image` field, the path relative to the folder, a column's
    value. `uri` is where its bytes are, as the listing's source spells it. `problem` says why it cannot be read, as far
    as the listing tells.
    """

    image_id: str
    uri: str
    problem: str | None = None


class BadSample(NamedTuple):
    """An image that cannot be used, where it failed (list, read, decode, encode) and why."""

    sample: Sample
    stage: str
    error: str
    message: str
    image_sha256: bytes | None = None


@dataclass
class Listing:
    """All images of an input, each id once, and what was left out. Sorted by id, but for streams."""

    name: str
    origin: str
    root: str
    """Where the `uri`s start; `sources.open_source` reads images from it."""
    samples: list[Sample]
    notes: dict[str, int] = field(default_factory=dict)
    """What was left out or folded together, and how often; for people."""
    ids: str = "paths"
    """What the ids are; for people."""
    streamed: bool = False
    """Whether the order is a stream's, which is read forward."""
    pieces: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Of tables, by file: the first row of each piece that can only be read forward; see `sources.order`."""

"""Describe one image of an input before it is read, and the list of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Sample(NamedTuple):
    """One image, not yet read.

    `image_id` is the name that training data uses: the LLaVA `image` field, the path relative to the folder, or a
    column's value. `uri` says where its bytes are, as the listing's source writes it. `problem` says why it cannot be
    read, if the listing shows that already.
    """

    image_id: str
    uri: str
    problem: str | None = None


class Version(NamedTuple):
    """What tells a file from a later one of its name."""

    size: int | None
    marks: Mapping[str, int | str]
    """By name: nanoseconds of its last change on this machine, or what a store says of it; empty if unknown."""


class BadSample(NamedTuple):
    """An image that cannot be used, with the stage that failed (list, read, decode, encode) and the reason."""

    sample: Sample
    stage: str
    error: str
    message: str
    image_sha256: bytes | None = None


@dataclass
class Listing:
    """All images of an input, each id once, and what was left out. They are sorted by id, except in streams."""

    name: str
    origin: str
    root: str
    """The location that the `uri`s start from; `sources.open_source` reads images from it."""
    samples: list[Sample]
    notes: dict[str, int] = field(default_factory=dict)
    """What was left out or merged, and how often, for people to read."""
    ids: str = "paths"
    """What the ids are, for people to read."""
    streamed: bool = False
    """Whether the order is that of a stream, which is read forward."""
    pieces: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """For tables, by file: the first row of each piece that can only be read forward; see `sources.order`."""
    versions: Mapping[str, Version] = field(default_factory=dict)
    """For tars, tables and datasets, by file: the version that the `uri`s hold for."""

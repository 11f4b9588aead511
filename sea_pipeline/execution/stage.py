"""Define a stage, which works on one shard at a time."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sea_pipeline.core.progress import Advance
from sea_pipeline.inputs.samples import BadSample, Sample
from sea_pipeline.inputs.sources import Source
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.paths import Place


class ShardResult(NamedTuple):
    """The result of a stage for a shard that it has written."""

    rows: int
    bad: list[BadSample]
    seconds: dict[str, float]
    first_image_sha256: str | None


class Stage(Protocol):
    """Work on one shard at a time, whose result depends on the samples and the fingerprint alone.

    A class that inherits from this one gets `at_once` and `finish` from here. Any other class must define them.
    """

    at_once: int = 1
    """Shards that are done at once. Two keep a GPU busy while a shard begins or ends."""

    def describe(self) -> dict[str, str]:
        """Return `device`, where it computes, `backend`, if it has one, and other facts for people."""
        ...

    def process(
        self,
        samples: list[Sample],
        source: Source,
        target: Path,
        footer: dict[str, Any],
        advance: Advance,
    ) -> ShardResult:
        """Write a shard to the file `target`, with `footer` in its footer.

        Calls `advance` with the number of images as they pass. The file is Parquet, with a row for each good image, in
        the order of the samples. From the columns `uri` and `image_sha256` (32 bytes) `open_or_create` knows whether a
        folder's images are still the same. A bad image goes to the result's `bad`. An exception fails the shard.
        """
        ...

    def finish(self, ledger: Ledger) -> list[Place]:
        """Write what follows from all shards together, and return the files that the manifest must name."""
        return []

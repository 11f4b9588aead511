"""What a stage is: work on one shard at a time."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sea_pipeline.core.progress import Advance
from sea_pipeline.inputs.samples import BadSample, Sample
from sea_pipeline.inputs.sources import Source
from sea_pipeline.output.ledger import Ledger
from sea_pipeline.storage.paths import Place


class ShardResult(NamedTuple):
    """What a stage says of a shard that it has written."""

    rows: int
    bad: list[BadSample]
    seconds: dict[str, float]
    first_image_sha256: str | None


class Stage(Protocol):
    """Work on one shard at a time; its result is a function of the samples and the fingerprint alone.

    A class that inherits from this one has what `at_once` and `finish` do here; every other needs but have them.
    """

    at_once: int = 1
    """Shards that are done at once: a second one where a GPU would wait for a shard's begin and end."""

    def describe(self) -> dict[str, str]:
        """Says of itself what people may want to know: `device`, where it computes, and `backend`, by what if any."""
        ...

    def process(
        self,
        samples: list[Sample],
        source: Source,
        target: Path,
        footer: dict[str, Any],
        advance: Advance,
    ) -> ShardResult:
        """Writes the shard into the file `target`, with `footer` in its footer; tells `advance` of images as they pass.

        Parquet, a row for each good image, in the samples' order. By the columns `uri` and `image_sha256`, 32 bytes,
        `begin` knows whether a folder's images are still the same. A bad image goes to the result's `bad`; an exception
        fails the shard.
        """
        ...

    def finish(self, ledger: Ledger) -> list[Place]:
        """Writes what follows from all shards together; returns the files that the manifest must name."""
        return []

"""What a stage is: work on one shard at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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
    """Work on one shard at a time; its result is a function of the samples and the fingerprint alone."""

    @property
    def device(self) -> str:
        """Where it computes."""
        ...

    @property
    def backend(self) -> str:
        """For people: for labels what proposes candidates, for targets their codec."""
        ...

    @property
    def at_once(self) -> int:
        """Shards that are done at once: a second one where a GPU would wait for a shard's begin and end."""
        ...

    def process(
        self,
        samples: list[Sample],
        source: Source,
        target: Path,
        footer: dict[str, Any],
        advance: Callable[[int], None],
    ) -> ShardResult:
        """Writes the shard into the file `target`, with `footer` in its footer; tells `advance` of images as they pass.

        A bad image goes to the result's `bad`; an exception fails the shard.
        """
        ...

    def finish(self, ledger: Ledger) -> list[Place]:
        """Writes what follows from all shards together; returns the files that the manifest must name."""
        ...

"""Settings of `sea-pipeline report`. A field's docstring is its option's help."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from sea_pipeline.core.settings import Settings


class ReportSettings(Settings):
    """The options of `sea-pipeline report`."""

    folders: tuple[str, ...] = ()
    """A folder of labels, runs, or both; several runs are shown side by side."""
    out: Path = Path("report.html")
    """The HTML file."""
    images: Annotated[int, Field(ge=0)] = 8
    """Held-out photos of each run that its model looks at; 0: only what is there."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first N photos of the labels."""
    words: Annotated[int, Field(ge=1, le=100)] = 5
    """Words of a patch that are kept."""
    thumbnail: Annotated[int, Field(ge=32, le=2048)] = 320
    """Longer side of a photo in the report, pixels."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; for runs."""

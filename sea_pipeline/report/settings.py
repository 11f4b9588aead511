"""Settings of `sea-pipeline report`. A field's docstring is its option's help."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from sea_pipeline.core.settings import Count, Device, Positive, Settings

MOST_PHOTOS = 2000
"""The default number of photos of labels."""


class ReportSettings(Settings):
    """The options of `sea-pipeline report`."""

    folders: tuple[str, ...] = ()
    """A folder of labels, folders of runs, or both. Several runs are shown side by side."""
    out: Path = Path("report.html")
    """The HTML file to write."""
    images: Count = 8
    """The number of photos that the model of each run looks at, held-out ones if there are any. 0: show only earlier
    results."""
    limit: Positive | None = MOST_PHOTOS
    """Show only the first N photos of the labels. Each takes 20 to 40 kB of the file, and browsers open files of up to
    some 500 MB."""
    words: Annotated[int, Field(ge=1, le=100)] | None = None
    """Show only this many words of each patch, the best ones. Default: all."""
    thumbnail: Annotated[int, Field(ge=32, le=2048)] = 320
    """The longer side of a photo in the report, in pixels."""
    device: Device = "auto"

"""Settings of `sea-pipeline teacher`. A field's docstring is its option's help; nothing loads torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sea_pipeline.core.settings import Device, Settings
from sea_pipeline.execution.cluster_settings import Extend, MaxBad, RetryBad, ShardSize, WorkerSettings
from trainer.recipes.options import BadRows, ConversationsFile, ConversationTemplate, ImageRoot
from trainer.recipes.recipe import AspectRatio, Basic
from trainer.targets.codecs import CodecName


class TeachSettings(Settings):
    """What `sea-pipeline teacher` is asked for; of several samples of an image, the first one counts."""

    model: Path
    """A LLaVA folder: its LLM's layers are the teacher."""
    data: ConversationsFile
    out: str | Path | None = None
    """Output folder, or a URL (s3://…). Default: one below runs/targets, named by the settings."""
    image_root: ImageRoot = None
    codec: CodecName = "int8"
    """Bytes of a vector of width d: 2 d, d + 2, or 64 (needs FAISS; for a first look)."""
    template: ConversationTemplate = "own"
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Tokens of a sample at most, the image's included."""
    image_aspect_ratio: AspectRatio | None = None
    """As data.image_aspect_ratio of the recipe that reads the targets. Default: the model's own."""
    basic: Basic = Basic()
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model's weights."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first N images, in the order of their ids."""
    bad_rows: BadRows = "stop"
    # An image of such rows alone has no targets, and is bad.
    device: Device = "auto"
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Images at a time."""
    shard_size: ShardSize = 256
    extend: Extend = False
    max_bad: MaxBad = 0.01
    retry_bad: RetryBad = False
    yes: bool = False
    """Write more than 100 GB without asking."""
    crew: WorkerSettings = WorkerSettings()

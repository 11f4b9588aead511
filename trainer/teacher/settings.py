"""Settings of `sea-pipeline teacher`. A field's docstring is its option's help; nothing loads torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sea_pipeline.core.settings import Count, Device, Positive, Settings
from sea_pipeline.execution.cluster_settings import Extend, MaxBad, RetryBad, ShardSize, WorkerSettings
from trainer.recipes.options import BadRows, ConversationsFile, ConversationTemplate, ImageRoot
from trainer.recipes.recipe import AspectRatio, Basic
from trainer.targets.codecs import CodecName


class TeachSettings(Settings):
    """The options of `sea-pipeline teacher`. If several samples show an image, the first one counts."""

    model: Path
    """The LLaVA folder of the model whose LLM is the teacher."""
    data: ConversationsFile
    out: str | Path | None = None
    """The output folder, or its URL (s3://…). Default: a folder in runs/targets, named after the settings."""
    image_root: ImageRoot = None
    codec: CodecName = "int8"
    """How vectors are stored. A vector of width d takes 2 d bytes as float16, d + 2 as int8, and 64 as pq64. pq64 needs
    FAISS, and is only for a first look."""
    template: ConversationTemplate = "own"
    max_length: Annotated[Count, Field(ge=16)] = 2048
    """The largest number of tokens in a row, image tokens included. Longer rows are cut."""
    image_aspect_ratio: AspectRatio | None = None
    """How images are made square. It must be the value of the same key in the data of the recipe that reads the
    targets. Default: as in the model folder."""
    basic: Basic = Basic()
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The number format of the model's weights."""
    limit: Positive | None = None
    """Store the targets of only the first N images, in the order of their ids. Default: all."""
    bad_rows: BadRows = "stop"
    # An image of such rows alone has no targets, and is bad.
    device: Device = "auto"
    batch_size: Positive = 8
    """The number of images that the model reads at once."""
    shard_size: ShardSize = 256
    extend: Extend = False
    max_bad: MaxBad = 0.01
    retry_bad: RetryBad = False
    yes: bool = False
    """Allow a folder of more than 100 GB, which is refused otherwise."""
    crew: WorkerSettings = WorkerSettings()

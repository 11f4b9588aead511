"""Settings of `sea-pipeline label`, `plan`, `probe`. A field's docstring is its option's help; nothing loads torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sea_pipeline.core.settings import Device, Settings
from sea_pipeline.encoders.spec import Precision, Template
from sea_pipeline.execution.cluster_settings import Extend, MaxBad, RetryBad, ShardSize, WorkerSettings
from sea_pipeline.search import Backend

_WordList = Annotated[str, Field(description="2of12, a UTF-8 file with one word per line, or mine:CAPTIONS.json.")]
_Precision = Annotated[Precision, Field(description="Of the image tower; words are float32 always.")]
_Template = Annotated[
    Template, Field(description='Embed words bare, as "a photo of a {}.", or as the mean of 80 such sentences.')
]
_TopN = Annotated[int, Field(ge=1, le=1000, description="At most this many labels per patch.")]


class LabelSettings(Settings):
    """The options of `sea-pipeline label`."""

    images: str | None = None
    """A folder of images; LLaVA's .json or .jsonl; a .csv, .tsv, .txt or .parquet list of paths; .parquet files or
    .tar files with images (one, a folder, *, {000..009}); a URL of any of these (s3://…); a datasets name or folder as
    hf:NAME[:SPLIT]. Default: sample photos of two packages."""
    image_root: str | Path | None = None
    """Folder or URL that paths in a list are relative to. Default: the list's own."""
    id_column: str | None = None
    """The column that holds the ids. Default: the first of image_id, id, key, __key__, file_name whose values all
    differ, else the image's path, else the row number."""
    streaming: bool = False
    """Read hf:NAME forward, in its own order; nothing is downloaded first."""
    wordlist: _WordList = "2of12"
    encoder: str = "packaged"
    """packaged (Python packages; nothing is downloaded); or open_clip:ARCH/PRETRAINED, open_clip:FOLDER or
    open_clip:hf-hub:ORG/NAME, and #final, #value, #vv or #pool behind it. s2: before any: at three scales."""
    precision: _Precision = "float32"
    template: _Template = "bare"
    top_n: _TopN = 10
    out: str | Path | None = None
    """Output folder, or a URL (s3://…). Default: one below runs/labels, named by the settings."""
    crops: Annotated[int, Field(ge=0, le=999)] = 0
    """Also label so many random square crops of each image, for training on crops."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Label only the first N images, in the order of their ids."""
    device: Device = "auto"
    search: Backend = "auto"
    """What proposes words; the labels are the same. int8: 8 bits with a bound on the error; faiss: FAISS's flat index;
    torch: float32; auto: on a CPU the fastest of them there, by a trial."""
    shard_size: ShardSize = 2048
    extend: Extend = False
    max_bad: MaxBad = 0.01
    retry_bad: RetryBad = False
    probe: bool = True
    """In a new folder, warn if 32 captioned images say that the encoder's other sign is better. The labels are the
    same; takes as long as labelling some forty images."""
    crew: WorkerSettings = WorkerSettings()


class ForecastSettings(LabelSettings):
    """The options of `sea-pipeline plan`, whose `images` are those it measures."""

    planned: Annotated[int, Field(ge=1)]
    """How many images there are to label."""
    images: str | None = None
    """What to measure on, as --images of label: photos like yours. Default: sample photos."""
    measure: Annotated[int, Field(ge=16)] = 64
    """Label so many images here, or more where there are many cores."""
    workers: Annotated[int, Field(ge=1, le=100_000)] = 64
    """The most workers to forecast for."""
    price: Annotated[float, Field(ge=0)] | None = None
    """What a worker costs an hour, in any currency."""


class ProbeSettings(Settings):
    """The options of `sea-pipeline probe`."""

    data: Path
    """A LLaVA .json or .jsonl file with captions."""
    image_root: str | Path | None = None
    """Folder or URL that the paths in the data start at. Default: the data's own."""
    encoder: Annotated[tuple[str, ...], Field(min_length=1)] = ("packaged",)
    """As for label; again for another one. Without #PATH all paths. Default: packaged."""
    wordlist: _WordList = "2of12"
    top_n: _TopN = 10
    limit: Annotated[int, Field(ge=2)] = 200
    """Captioned images at most."""
    seed: int = 0
    """Of the choice of images and of the intervals."""
    precision: _Precision = "float32"
    template: _Template = "bare"
    device: Device = "auto"


class LlmProbeSettings(Settings):
    """The options of `sea-pipeline probe --llm`."""

    llm: str
    """Probe an LLM instead: a LLaVA folder, or an LLM as init takes it, such as packaged."""
    text: Path | None = None
    """With --llm: a text file. Default: plain English of ours."""
    # Lenses are always fitted to the default text.
    layers: Annotated[int, Field(ge=1)] | None = None
    """With --llm: k of BASIC's Eq. 4. Default: half of the LLM's layers."""
    layer_weights: Literal["inc", "const", "dec"] = "inc"
    """With --llm: w_i of Eq. 4, as for teacher."""
    device: Device = "auto"

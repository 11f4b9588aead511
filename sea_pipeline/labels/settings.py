"""Settings of `sea-pipeline label`, `plan`, `probe`. A field's docstring is its option's help; nothing loads torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sea_pipeline.core.settings import Count, Device, Positive, Seed, Settings
from sea_pipeline.encoders.spec import Precision, Template
from sea_pipeline.execution.cluster_settings import Extend, MaxBad, RetryBad, ShardSize, WorkerSettings
from sea_pipeline.search import Backend

_WordList = Annotated[
    str,
    Field(
        description="The word list: 2of12 (packaged), a UTF-8 file with one word per line, or mine:CAPTIONS.json for a "
        "list mined from captions."
    ),
]
_Precision = Annotated[
    Precision, Field(description="The precision of the image tower. Words are always embedded in float32.")
]
_Template = Annotated[
    Template,
    Field(
        description='The text that is embedded for a word. bare: the word alone. photo: "a photo of a {}." ensemble: '
        "the mean of 80 such sentences."
    ),
]
_TopN = Annotated[int, Field(ge=1, le=1000, description="The largest number of labels per patch.")]


class LabelSettings(Settings):
    """The options of `sea-pipeline label`."""

    images: str | None = None
    """The images: a folder; a LLaVA .json or .jsonl file; a .csv, .tsv, .txt or .parquet list of paths; .parquet or
    .tar files with images (one file, a folder, or a pattern with * or {000..009}); a URL of any of these (s3://…); or
    hf:NAME[[:CONFIG]:SPLIT], where NAME is a dataset on the Hugging Face hub or a folder. Default: the packaged sample
    photos."""
    image_root: str | Path | None = None
    """The folder or URL that the image paths in a list are relative to. Default: the folder of the list."""
    id_column: str | None = None
    """The column with the image ids. Default: the first of image_id, id, key, __key__ and file_name whose values all
    differ, else the image's path, else the row number."""
    streaming: bool = False
    """Read hf:NAME from its start to its end, without downloading it first. The images keep its order."""
    wordlist: _WordList = "2of12"
    encoder: str = "packaged"
    """The model that embeds patches and words: packaged (from Python packages, without a download), or open_clip: and
    then ARCH/PRETRAINED, a folder or hf-hub:ORG/NAME. Append #final, #value, #vv or #pool to choose the patch vectors
    of an open_clip model, and then + or - to choose the sign of the similarity. Prepend s2: to use three image
    scales."""
    precision: _Precision = "float32"
    template: _Template = "bare"
    top_n: _TopN = 10
    out: str | Path | None = None
    """The output folder, or its URL (s3://…). Default: a folder in runs/labels, named after the settings."""
    crops: Annotated[int, Field(ge=0, le=999)] = 0
    """Also label this many random square crops of each image, for training on crops."""
    limit: Positive | None = None
    """Label only the first N images, in the order of their ids. Default: all."""
    device: Device = "auto"
    search: Backend = "auto"
    """The method that searches words; it changes the speed, not the labels. int8: 8-bit scores with a bound on their
    error. faiss: FAISS's flat index. torch: float32 scores, on a GPU float16 ones first. auto: on a CPU the fastest one
    available, found by a trial; on a GPU torch."""
    shard_size: ShardSize = 2048
    extend: Extend = False
    max_bad: MaxBad = 0.01
    retry_bad: RetryBad = False
    probe: bool = True
    """In a new folder, try both signs of the encoder's similarity on 32 captioned images of a LLaVA file, and warn if
    the other sign is clearly better. The labels stay the same. This takes as long as labelling about forty images."""
    crew: WorkerSettings = WorkerSettings()


class ForecastSettings(LabelSettings):
    """The options of `sea-pipeline plan`, whose `images` are those it measures."""

    planned: Positive
    """The number of images that you want to label."""
    images: str | None = None
    """The photos to measure on, given as for --images of label. Choose photos like yours. Default: the packaged sample
    photos."""
    measure: Annotated[Count, Field(ge=16)] = 64
    """The number of images to label for the measurement, at least 16. On a machine with many cores, more are
    labelled."""
    workers: Annotated[int, Field(ge=1, le=100_000)] = 64
    """The largest number of workers in the forecast."""
    price: Annotated[float, Field(ge=0, le=1e12)] | None = None
    """The price of one worker for one hour, in any currency. Default: the forecast has no costs."""


class ProbeSettings(Settings):
    """The options of `sea-pipeline probe`."""

    data: Path
    """A LLaVA .json or .jsonl file with captions."""
    image_root: str | Path | None = None
    """The folder or URL that the image paths in --data are relative to. Default: the folder of --data."""
    encoder: Annotated[tuple[str, ...], Field(min_length=1)] = ("packaged",)
    """An encoder, given as for label. Repeat the option to measure several. An open_clip model without #PATH is
    measured with all of its kinds of patch vectors. Default: packaged."""
    wordlist: _WordList = "2of12"
    top_n: _TopN = 10
    limit: Annotated[Count, Field(ge=2)] = 200
    """The largest number of captioned images to use."""
    seed: Seed = 0
    """The random seed for the choice of images and for the intervals."""
    precision: _Precision = "float32"
    template: _Template = "bare"
    device: Device = "auto"


class LlmProbeSettings(Settings):
    """The options of `sea-pipeline probe --llm`."""

    llm: str
    """Probe this LLM instead of encoders: a LLaVA folder, or an LLM given as for --llm of init, such as packaged."""
    text: Path | None = None
    """With --llm: a UTF-8 text file for the LLM to read. Default: a packaged English text."""
    # Lenses are always fitted to the default text.
    layers: Positive | None = None
    """With --llm: the number of layers that are summed, k of BASIC's Eq. 4. Default: half of the LLM's layers."""
    layer_weights: Literal["inc", "const", "dec"] = "inc"
    """With --llm: how the layers are weighted, w_i of BASIC's Eq. 4. inc: later layers count more. const: all
    count the same. dec: later layers count less."""
    device: Device = "auto"

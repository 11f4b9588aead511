"""Settings of `sea-pipeline evaluate`. A field's docstring is its option's help; nothing loads torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sea_pipeline.core.settings import Device, Positive, Settings
from trainer.recipes.options import PROMPT_FORMAT, BadRows, ConversationsFile, ImageRoot, TemplateName

NEW_TOKENS = 48
"""The largest number of tokens in a description."""


class EvaluateSettings(Settings):
    """The options of `sea-pipeline evaluate`."""

    model: Path
    """The LLaVA folder of the model."""
    data: ConversationsFile
    labels: str | Path | None = None
    """A folder of labels for the images. Default: none, and what needs the words of patches is not measured."""
    image_root: ImageRoot = None
    template: Annotated[
        TemplateName | None, Field(description=f"{PROMPT_FORMAT} Default: that of the model's run, else own.")
    ] = None
    transfer: bool = False
    """Use labels made on another grid or crop, by carrying them over with their crop boxes."""
    layers: bool = False
    """Find the LLM token that is nearest to each visual token at each layer."""
    replace: bool = False
    """Let the model describe images, once from their visual tokens and once from the LLM tokens nearest to these."""
    lens: Literal["contextual"] | None = None
    """Count, at each layer, the visual tokens that are nearest to a word of their own photo's captions. The words are
    taken as the LLM has read them in sentences (LatentLens), and as its input embeddings."""
    lens_data: str | None = None
    """With --lens: the sentences, which are a LLaVA .json or .jsonl file, or samples for the packaged sample photos.
    Default: the training data of the model's run."""
    limit_images: Positive | None = None
    """Use only the first N photos for --layers, --lens, --replace and --save-figures. Default: all for --layers and
    --lens, 8 for the others."""
    new_tokens: Positive = NEW_TOKENS
    """With --replace: the largest number of tokens in a description."""
    questions: Path | None = None
    """A JSON file of yes/no questions, questions with people's answers, or both. The share of right answers is measured
    with the questions' own photos and with other photos."""
    question_root: Path | None = None
    """The folder of the questions' photos. Default: --image-root, else the folder of --questions."""
    out: Path | None = None
    """A JSON file to write, with the results of --layers and --replace for each image."""
    save_figures: Path | None = None
    """A folder to write figures to, as PDF and PNG: words on patches with --labels, tokens by layer with --layers."""
    batch_size: Positive = 8
    """The number of samples that the model reads at once."""
    bad_rows: BadRows = "stop"
    device: Device = "auto"

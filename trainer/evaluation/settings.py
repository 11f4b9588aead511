"""Settings of `sea-pipeline evaluate`. A field's docstring is its option's help; nothing loads torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sea_pipeline.core.settings import Device, Settings
from trainer.recipes.options import BadRows, ConversationsFile, ConversationTemplate, ImageRoot

NEW_TOKENS = 48
"""Most tokens of a description."""


class EvaluateSettings(Settings):
    """What `sea-pipeline evaluate` is asked for."""

    model: Path
    """A LLaVA folder."""
    data: ConversationsFile
    labels: str | Path | None = None
    """Labels of the images; without them what needs words of patches is not measured."""
    image_root: ImageRoot = None
    template: ConversationTemplate = "own"
    transfer: bool = False
    """Carry labels of another grid or crop over by their crop boxes."""
    layers: bool = False
    """Name the LLM token nearest to each visual token at each layer."""
    replace: bool = False
    """Describe images from visual tokens, and from the tokens nearest to them."""
    lens: Literal["contextual"] | None = None
    """Compare visual tokens, layer by layer, with words as the LLM reads them in sentences (LatentLens), beside its
    input embeddings: how many are nearest to a word of their own photo's captions."""
    lens_data: str | None = None
    """For --lens: a LLaVA .json or .jsonl file with the sentences, or `samples`. Default: what the run of the model was
    trained on."""
    limit_images: Annotated[int, Field(ge=1)] | None = None
    """Images for --layers, --lens (default: all) and --replace (default: 8)."""
    new_tokens: Annotated[int, Field(ge=1)] = NEW_TOKENS
    """Tokens of a description at most."""
    questions: Path | None = None
    """JSON of yes/no questions and of questions with people's answers: how many are answered rightly, with their own
    photos and with others'."""
    question_root: Path | None = None
    """Folder of the questions' photos. Default: --image-root, or the file's own."""
    out: Path | None = None
    """JSON file for what --layers and --replace find of each image."""
    save_figures: Path | None = None
    """Folder for figures, PDF and PNG: words on patches (--labels), tokens by layer (--layers)."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Samples at a time."""
    bad_rows: BadRows = "stop"
    device: Device = "auto"

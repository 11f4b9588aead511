"""Settings of `sea-pipeline tokens`. A field's docstring is its option's help; nothing loads torch."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from sea_pipeline.core.settings import Settings
from trainer.recipes.options import ConversationTemplate


class TokensSettings(Settings):
    """What `sea-pipeline tokens` is asked for."""

    model: str
    """A LLaVA folder; or an LLM as init takes it, with --visual-tokens."""
    data: Path
    """A LLaVA .json or .jsonl file."""
    template: ConversationTemplate = "own"
    max_length: Annotated[int, Field(ge=1)] = 2048
    """Tokens of a row at most, the image's included."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only so many rows, from the first on."""
    visual_tokens: Annotated[int, Field(ge=1)] | None = None
    """For an LLM: how many tokens an image becomes, such as 576."""

"""Settings of `sea-pipeline tokens`. A field's docstring is its option's help; nothing loads torch."""

from pathlib import Path

from sea_pipeline.core.settings import Positive, Settings
from trainer.recipes.options import ConversationTemplate


class TokensSettings(Settings):
    """The options of `sea-pipeline tokens`."""

    model: str
    """A LLaVA folder, or, with --visual-tokens, an LLM given as for --llm of init."""
    data: Path
    """The conversations: a LLaVA .json or .jsonl file."""
    template: ConversationTemplate = "own"
    max_length: Positive = 2048
    """The largest number of tokens in a row, image tokens included. Longer rows are cut."""
    limit: Positive | None = None
    """Show only the first N rows. Default: all."""
    visual_tokens: Positive | None = None
    """For an LLM: the number of tokens that an image becomes, such as 576."""

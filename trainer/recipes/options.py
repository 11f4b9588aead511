"""Options that several of the trainer's commands share, as types of their settings' fields."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

TemplateName = Literal["plain", "vicuna_v1", "own"]
ConversationsFile = Annotated[
    str,
    Field(description="The conversations: a LLaVA .json or .jsonl file, or samples for the packaged sample photos."),
]
ImageRoot = Annotated[
    Path | None,
    Field(description="The folder that the image paths in --data are relative to. Default: the folder of --data."),
]
PROMPT_FORMAT = (
    "The prompt format. plain: image, caption, newline, as in LLaVA's stage 1. vicuna_v1: LLaVA-1.5's. own: the LLM's "
    "own chat template."
)
ConversationTemplate = Annotated[TemplateName, Field(description=PROMPT_FORMAT)]
BadRows = Annotated[
    Literal["stop", "leave_out"],
    Field(
        description="What to do with rows that cannot be trained or whose image is missing. stop: name them all and "
        "stop. leave_out: go on without them."
    ),
]

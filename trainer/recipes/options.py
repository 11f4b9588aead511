"""Options that several of the trainer's commands share, as types of their settings' fields."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

TemplateName = Literal["plain", "vicuna_v1", "own"]
ConversationsFile = Annotated[str, Field(description="A LLaVA .json or .jsonl file, or `samples`.")]
ImageRoot = Annotated[
    Path | None, Field(description="Folder that the paths in the data are relative to. Default: the data's own.")
]
ConversationTemplate = Annotated[TemplateName, Field(description="How conversations are written; own: the LLM's way.")]
BadRows = Annotated[
    Literal["stop", "leave_out"],
    Field(description="Rows that cannot be trained, or whose image is missing: name them all, or leave them out."),
]

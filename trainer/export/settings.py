"""Settings of `sea-pipeline export`. A field's docstring is its option's help; nothing loads torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sea_pipeline.core.settings import Settings

Kind = Literal["model", "llm", "projector"]
_Version = Annotated[int, Field(ge=4, le=5)]
"""The major version of transformers."""


class ExportSettings(Settings):
    """What `sea-pipeline export` is asked for."""

    source: Path
    """A run's folder, or a LLaVA folder."""
    out: Path
    """The new folder."""
    checkpoint: Annotated[int, Field(ge=0)] | None = None
    """Of a run, the weights of this step: one of keep_checkpoints, or 0. Default: its end."""
    names: _Version | None = None
    """Version of transformers whose names weights and settings have. transformers 4, 5 and vLLM read 4's, the default
    where they can say all."""
    rescale_projector: bool = False
    """For transformers 4 and Gemma: divide the projector by sqrt(width), by which that version multiplies visual
    tokens. Others do not read the folder then."""
    compat: _Version | None = None
    """`names` as it was called before; 4 also sets `rescale_projector` for an LLM that needs it."""
    kind: Kind = "model"
    """The whole LLaVA; its LLM as a causal LM; or its projector as LLaVA's own code stores it."""
    format: Literal["safetensors", "bin"] = "safetensors"
    """Of the projector's file; bin is torch's."""
    push: str | None = None
    """OWNER/NAME on the Hugging Face hub; a new repository is private."""

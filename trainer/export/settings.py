"""Settings of `sea-pipeline export`. A field's docstring is its option's help; nothing loads torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sea_pipeline.core.settings import Count, Settings

Kind = Literal["model", "llm", "projector"]
_Version = Annotated[int, Field(ge=4, le=5)]
"""The major version of transformers."""


class ExportSettings(Settings):
    """The options of `sea-pipeline export`."""

    source: Path
    """The folder of a run, or a LLaVA folder."""
    out: Path
    """The new folder to write."""
    checkpoint: Count | None = None
    """Export a run's weights at this step: one of keep_checkpoints, or 0 for its start. Default: its end."""
    names: _Version | None = None
    """Name weights and settings as version 4 or 5 of transformers does. transformers 4, transformers 5 and vLLM read
    the names of version 4. Those of version 5 need transformers 5.6 or newer for CLIP and SigLIP. Default: 4 if its
    names can express the model, else 5."""
    rescale_projector: bool = False
    """For an LLM such as Gemma in transformers before 5.4: divide the projector by sqrt(width), because these versions
    multiply visual tokens by it. Other programs then refuse the folder."""
    compat: _Version | None = None
    """The earlier name of `names`. 4 also sets `rescale_projector` for an LLM that needs it."""
    kind: Kind = "model"
    """The part to write: the whole LLaVA, its LLM as a causal LM, or its projector as LLaVA's own code stores it."""
    format: Literal["safetensors", "bin"] = "safetensors"
    """With --projector-only: the format of the file. bin is PyTorch's, which LLaVA's own code reads."""
    push: str | None = None
    """Also upload the folder to OWNER/NAME on the Hugging Face hub. A new repository is private."""

"""Settings of `sea-pipeline init`. A field's docstring is its option's help; nothing loads torch."""

from pathlib import Path
from typing import Literal

from sea_pipeline.core.settings import Settings

Projector = Literal["mlp2x_gelu", "linear"]


class InitSettings(Settings):
    """What `sea-pipeline init` is asked for: the arguments of `init_model`."""

    vision: str
    """packaged, s2:SPEC, or a folder or hub name of a CLIP, SigLIP (1 or 2), DINOv2, DINOv3 or PE-Core."""
    llm: str
    """packaged, a .gguf file, or a folder or hub name of a causal LM."""
    out: Path
    """The new model folder."""
    projector: Projector = "mlp2x_gelu"
    """LLaVA-1.5's two layers, or one."""
    feature_layer: int | None = None
    """Which hidden state of the tower. Default: -2, or -1 for packaged and s2."""
    seed: int = 0
    """Of the projector's weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of all weights."""
